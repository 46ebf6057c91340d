"""Does a model follow prompts that people write as well as those of the composer's templates?

    python benchmarks/free_prompts.py --judges corpus/train        # writes docs/evaluation/free-prompts-mini.md

`melody_jax/assets/free_prompts.jsonl` has 60 prompts in the manner of MusicCaps, written before any network was trained
with a view to them, with the group and the instruments that they ask for. `prompts.jsonl` has 160 captions of composed
pieces. One clip is made from each, with the default settings; the judges are those of `melody diagnose` (group) and
`melody evaluate` (instruments).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from melody_jax.composer import prompt_facts
from melody_jax.composer.prompt_facts import PromptFacts
from melody_jax.evaluation import composed_prompts, evaluate, group_judge
from melody_jax.evaluation.adherence import Judge
from melody_jax.evaluation.clip_features import clip_features
from melody_jax.evaluation.clips import open_set
from melody_jax.evaluation.embed_clips import Share, measure
from melody_jax.evaluation.embedding import MuLan
from melody_jax.evaluation.intervals import Interval, mean_interval
from melody_jax.evaluation.sound import Sound
from melody_jax.runtime import enable_compile_cache
from melody_jax.sampling.cascade import Melody, load

ROOT = Path(__file__).parents[1]
FREE = composed_prompts.PROMPTS.with_name("free_prompts.jsonl")
TARGET = 0.85
"""Share of the templates' scores that free prompts should reach."""
BATCH = 16


@dataclass(frozen=True)
class Arguments:
    """Compares free-form prompts with templates."""

    judges: Path
    """Audio shards of composed music, train split, for the judge of instruments."""
    model: str = "mini"
    """Name of the release."""
    folder: str | None = None
    """Folder of releases; none: the packaged ones."""
    judge_pieces: int = 80
    """Composed clips of each group that the judge of groups is trained on."""
    cache: Path = Path("runs/free-prompts")
    """Folder of the judges' features."""
    out: Path = ROOT / "docs" / "evaluation"
    """Folder of the table."""


def templates() -> tuple[list[str], list[PromptFacts]]:
    """Texts of the composed pieces, and what they ask for."""
    prompts = composed_prompts.read_prompts(composed_prompts.PROMPTS)
    facts = [
        PromptFacts(group=prompt.group, instruments=prompt_facts.of_text(prompt.text).instruments)
        for prompt in prompts
    ]
    return [prompt.text for prompt in prompts], facts


def free() -> tuple[list[str], list[PromptFacts]]:
    """Free-form texts, and what they ask for."""
    rows = [json.loads(line) for line in FREE.read_text().splitlines()]
    facts = [
        PromptFacts(group=row["group"], instruments=tuple(frozenset((name,)) for name in row["instruments"]))
        for row in rows
    ]
    return [row["text"] for row in rows], facts


def features_of(
    melody: Melody, texts: Sequence[str], settings: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, np.ndarray]:
    """Features of one clip of a window for each text; clip i has seed i. settings: by name, one value per clip."""
    rows = []
    for first in tqdm(range(0, len(texts), BATCH), unit="batch"):
        batch = list(texts[first : first + BATCH])
        seeds = list(range(first, first + len(batch)))
        given = {name: list(values[first : first + BATCH]) for name, values in (settings or {}).items()}
        clips = melody.generate(batch, seconds=melody.window_seconds, seed=seeds, **given)
        rows += [clip_features(Sound(clip, melody.audio_format).to()) for clip in clips]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def fact_judge(shards: Path, cache: Path) -> Judge:
    """The judge of facts of `melody evaluate`, trained on audio shards of composed music."""
    clips = open_set(shards)
    rows = measure(clips, MuLan("mini"), Share(cache=cache), with_features=True)
    assert rows is not None
    return evaluate.train_judges(clips, rows, 0)


def main() -> None:
    """Measures, prints and writes the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    enable_compile_cache()
    melody = load(arguments.model, folder=arguments.folder)
    judges = {
        "group": group_judge.train_group_judge(arguments.cache, arguments.judge_pieces),
        "instruments": fact_judge(arguments.judges, arguments.cache),
    }
    scores: dict[str, dict[str, Interval]] = {}
    for name, (texts, facts) in {"templates": templates(), "free": free()}.items():
        features = features_of(melody, texts)
        for fact, scorer in judges.items():
            values = scorer.scores(features, facts)[fact]
            scores.setdefault(fact, {})[name] = mean_interval(values[~np.isnan(values)])
    lines = [
        "| fact | templates | 95 % interval | free-form | 95 % interval | free / templates | target |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for fact, row in scores.items():
        cells = [f"{one.value:.2f} | {one.low:.2f} to {one.high:.2f}" for one in row.values()]
        ratio = row["free"].value / row["templates"].value
        lines.append(f"| {fact} | {' | '.join(cells)} | {ratio:.2f} | {TARGET} |")
    page = "\n".join(lines) + "\n"
    print(page)
    (arguments.out / f"free-prompts-{arguments.model}.md").write_text(page)


if __name__ == "__main__":
    main()
