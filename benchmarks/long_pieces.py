"""Does a piece of a minute keep its tempo, key and level, and does it ever fall silent?

    python benchmarks/long_pieces.py --judges corpus/train        # writes docs/evaluation/long-pieces-mini.md

One piece is made from each of the first `--per_group` prompts of each group with a pulse, continued window by window,
and cut into thirds. The tempo of a third is right within 8 % of the prompt's, of its half or its double; the key of the
last third is compared with that of the first, as the judge of `melody evaluate` hears them. The same is measured on
composed pieces of the same length.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from free_prompts import fact_judge
from tqdm import tqdm

from melody_jax.evaluation import composed_prompts, signal
from melody_jax.evaluation.clip_features import clip_features, is_same_tempo
from melody_jax.evaluation.composed_prompts import ComposedPrompt
from melody_jax.evaluation.fact_judges import FactJudges
from melody_jax.evaluation.intervals import mean_interval
from melody_jax.evaluation.sound import Sound
from melody_jax.runtime import enable_compile_cache
from melody_jax.sampling.cascade import load

ROOT = Path(__file__).parents[1]
SECONDS = 60.0
THIRDS = ("first", "second", "last")
BATCH = 8


@dataclass(frozen=True)
class Arguments:
    """Measures pieces of a minute."""

    judges: Path
    """Audio shards of composed music, train split, for the judge of keys."""
    model: str = "mini"
    """Name of the release."""
    folder: str | None = None
    """Folder of releases; none: the packaged ones."""
    per_group: int = 3
    """Prompts of each group."""
    cache: Path = Path("runs/long-pieces")
    """Folder of the judge's features."""
    out: Path = ROOT / "docs" / "evaluation"
    """Folder of the table."""


def choose_prompts(per_group: int) -> list[ComposedPrompt]:
    """The first prompts of each group, without those that describe music without a beat."""
    prompts = composed_prompts.read_prompts(composed_prompts.PROMPTS)
    groups = itertools.groupby(prompts, lambda prompt: prompt.group)
    first = itertools.chain.from_iterable(list(group)[:per_group] for _, group in groups)
    return [prompt for prompt in first if prompt.rhythmic]


def thirds(wave: np.ndarray) -> list[np.ndarray]:
    """The three thirds of a wave (T,)."""
    return np.array_split(wave, len(THIRDS))


def row(waves: list[np.ndarray], tempi: list[float], scorer: FactJudges) -> list[str]:
    """The cells of a line of the table."""
    features = [[clip_features(part) for part in thirds(wave)] for wave in tqdm(waves, unit="piece")]
    cells = []
    right = np.array(
        [
            [is_same_tempo(float(third["tempo"]), tempo) for third in piece]
            for piece, tempo in zip(features, tempi, strict=True)
        ]
    )
    for third in right.T:
        interval = mean_interval(third.astype(float))
        cells.append(f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})")
    chroma = {place: np.stack([piece[place]["chroma"] for piece in features]) for place in (0, 2)}
    keys = {place: scorer.keys({"chroma": rows}) for place, rows in chroma.items()}
    same = mean_interval((keys[0] == keys[2]).astype(float))
    cells.append(f"{same.value:.2f} ({same.low:.2f} to {same.high:.2f})")
    levels = np.array([[np.sqrt(np.mean(part**2)) for part in thirds(wave)] for wave in waves])
    cells.append(", ".join(f"{level:.3f}" for level in levels.mean(axis=0)))
    cells.append(f"{sum(signal.longest_silence(wave) > 2 for wave in waves)}")
    return cells


def main() -> None:
    """Measures, prints and writes the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    enable_compile_cache()
    melody = load(arguments.model, folder=arguments.folder)
    prompts = choose_prompts(arguments.per_group)
    scorer = fact_judge(arguments.judges, arguments.cache)
    assert isinstance(scorer, FactJudges)
    generated: list[np.ndarray] = []
    for first in tqdm(range(0, len(prompts), BATCH), unit="batch"):
        texts = [prompt.text for prompt in prompts[first : first + BATCH]]
        seeds = list(range(first, first + len(texts)))
        clips = melody.generate(texts, seconds=SECONDS, seed=seeds)
        generated += [Sound(clip, melody.audio_format).to() for clip in clips]
    pieces = [composed_prompts.compose_piece(prompt, SECONDS, prompt.tempo_bpm) for prompt in prompts]
    truth = [
        composed_prompts.render_with(piece, "test", number)
        for number, piece in enumerate(tqdm(pieces, unit="piece"))
    ]
    tempi = [prompt.tempo_bpm for prompt in prompts]
    lines = [
        f"{len(prompts)} pieces of {SECONDS:g} s; 95 % intervals.",
        "",
        "| pieces | tempo right, first third | second | last | key of the last third is that of the first | RMS of the "
        "thirds | silent for over 2 s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, waves in (("composed", truth), (arguments.model, generated)):
        lines.append(f"| {name} | {' | '.join(row(waves, tempi, scorer))} |")
    page = "\n".join(lines) + "\n"
    print(page)
    (arguments.out / f"long-pieces-{arguments.model}.md").write_text(page)


if __name__ == "__main__":
    main()
