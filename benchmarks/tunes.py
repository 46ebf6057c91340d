"""Does MusicLM follow a tune that it is given with `--melody`?

    python benchmarks/tunes.py --model musiclm_ablation        # writes docs/evaluation/tunes-musiclm_ablation.md

The tunes are the melodies of composed test pieces, each played again on another instrument; the prompts are the
captions of the pieces. A clip follows its tune if its chroma, warped in time, is closer to that tune than to each of
nine others, the next ones of the list. The clips of the same prompts without a tune, and the composed pieces, show what
chance and a perfect answer give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import tyro
from tqdm import tqdm

from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.composer.tune import tune
from melody_jax.evaluation import composed_prompts
from melody_jax.evaluation.composed_prompts import ComposedPrompt
from melody_jax.evaluation.intervals import mean_interval
from melody_jax.evaluation.sound import Sound
from melody_jax.melody_tokens import SILENT, melody_tokens
from melody_jax.runtime import enable_compile_cache
from melody_jax.systems import load

ROOT = Path(__file__).parents[1]
HOP = 2048
"""Samples between chroma vectors, 85 ms."""
LOWEST, OCTAVES = "C4", 4
"""Range of the chroma vectors, above bass and most chords. With it, and with `BAND`, 39 of 40 composed pieces are
closest to their tunes; with seven octaves and no band, 24 are."""
BAND = 0.05
"""Largest shift in time when a clip and a tune are compared, as a share of their length."""
OTHERS = 9
BATCH = 20


@dataclass(frozen=True)
class Arguments:
    """Measures how often a clip follows its tune."""

    model: str = "musiclm_ablation"
    """Name of a release of MusicLM whose language model follows a melody."""
    folder: str | None = None
    """Folder of releases; none: the packaged ones."""
    tunes: int = 40
    """Number of tunes, at least 10."""
    seconds: float = 10.0
    """Length of clips and tunes."""
    out: Path = ROOT / "docs" / "evaluation"
    """Folder of the table."""


def choose(count: int, seconds: float) -> tuple[list[ComposedPrompt], list[np.ndarray]]:
    """The first prompts, taken from each group in turn, whose tunes are heard in more than half of the first
    `seconds`; and these tunes (T,) at 24 kHz."""
    prompts = composed_prompts.read_prompts(composed_prompts.PROMPTS)
    groups = [[p for p in prompts if p.group == group.name] for group in composed_prompts.GROUPS]
    chosen: list[ComposedPrompt] = []
    tunes: list[np.ndarray] = []
    for prompt in (prompt for rank in zip(*groups, strict=True) for prompt in rank):
        wave = tune(composed_prompts.compose_piece(prompt))
        if wave is None:
            continue
        opening = wave[: round(seconds * SAMPLE_RATE)]
        if np.mean(melody_tokens(opening) == SILENT) < 0.5:
            chosen.append(prompt)
            tunes.append(opening)
        if len(chosen) == count:
            break
    return chosen, tunes


def chroma(wave: np.ndarray) -> np.ndarray:
    """Chroma vectors (12, frames) of unit length; those of silence are all alike."""
    lowest = librosa.note_to_hz(LOWEST)
    values = librosa.feature.chroma_cqt(
        y=wave, sr=SAMPLE_RATE, hop_length=HOP, norm=None, fmin=lowest, n_octaves=OCTAVES
    )
    values = values + 1e-4
    return values / np.linalg.norm(values, axis=0)


def cosine(clip: np.ndarray, melody: np.ndarray) -> float:
    """Mean cosine along the best path between two sequences of chroma vectors (12, frames)."""
    costs, path = librosa.sequence.dtw(clip, melody, metric="cosine", global_constraints=True, band_rad=BAND)
    return 1 - float(costs[-1, -1]) / len(path)


def follows(clips: Sequence[np.ndarray], melodies: Sequence[np.ndarray]) -> np.ndarray:
    """Whether clip i is closer to melody i than to each of the next nine, bool (N,)."""
    count = len(melodies)
    closest = []
    for i, clip in enumerate(tqdm(clips, unit="clip", desc="comparing")):
        cosines = [cosine(clip, melodies[(i + shift) % count]) for shift in range(OTHERS + 1)]
        closest.append(cosines[0] > max(cosines[1:]))
    return np.array(closest)


def clips(
    arguments: Arguments, prompts: list[ComposedPrompt], tunes: list[np.ndarray] | None
) -> list[np.ndarray]:
    """A clip for each prompt, 24 kHz mono; clip i has the seed i."""
    system = load(arguments.model, system="musiclm", folder=arguments.folder)
    generated: list[np.ndarray] = []
    for first in range(0, len(prompts), BATCH):
        part = slice(first, first + BATCH)
        texts = [prompt.text for prompt in prompts[part]]
        settings = {} if tunes is None else {"melody": tunes[part]}
        batch = system.generate(
            texts,
            seconds=arguments.seconds,
            seed=list(range(first, first + len(texts))),
            progress=True,
            **settings,
        )
        generated += [Sound(clip, system.audio_format).to() for clip in batch]
    return generated


def main() -> None:
    """Measures, prints and writes the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.tunes <= OTHERS:
        raise SystemExit(
            f"tunes is {arguments.tunes}; each is compared with {OTHERS} others: give at least 10"
        )
    enable_compile_cache()
    prompts, tunes = choose(arguments.tunes, arguments.seconds)
    melodies = [chroma(wave) for wave in tunes]
    waves = {
        "with its tune": clips(arguments, prompts, tunes),
        "the same prompt without a tune": clips(arguments, prompts, None),
        "the composed piece": [
            composed_prompts.ground_truth(prompt, number, arguments.seconds)
            for number, prompt in enumerate(prompts)
        ],
    }
    rows = [
        f"{len(tunes)} tunes of {arguments.seconds:g} s, `{arguments.model}`: share of clips that are closer to their "
        f"tune than to each of {OTHERS} others (chance: {1 / (OTHERS + 1):g}).",
        "",
        "| clips | closest to their tune | 95 % interval |",
        "| --- | --- | --- |",
    ]
    for name, sounds in waves.items():
        interval = mean_interval(follows([chroma(wave) for wave in sounds], melodies).astype(float))
        rows.append(f"| {name} | {interval.value:.2f} | {interval.low:.2f} to {interval.high:.2f} |")
    page = "\n".join([*rows, ""])
    print(page)
    (arguments.out / f"tunes-{arguments.model}.md").write_text(page)


if __name__ == "__main__":
    main()
