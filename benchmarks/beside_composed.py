"""Are clips from text as close to composed pieces as composed pieces are to each other, and do they click?

    python benchmarks/beside_composed.py        # writes docs/evaluation/beside-composed-mini.md

A clip is made from each of the first `--per_group` committed prompts of each group, beside the piece that the prompt
describes. Both sets are split in two at random, many times, with the same number of every group in both halves. The
Fréchet distance from one half of the clips to the other half of the pieces is compared with that between the halves of
the pieces, in MuLan and in an embedding without a network (`log_mel_embedding.py`).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from log_mel_embedding import LogMel
from tqdm import tqdm

from melody_jax.evaluation import composed_prompts
from melody_jax.evaluation.embedding import MuLan
from melody_jax.evaluation.frechet import frechet_distance
from melody_jax.evaluation.sound import Sound
from melody_jax.runtime import enable_compile_cache
from melody_jax.sampling.cascade import load

ROOT = Path(__file__).parents[1]
SPLITS = 50
BATCH = 16


@dataclass(frozen=True)
class Arguments:
    """Compares clips with composed pieces."""

    model: str = "mini"
    """Name of the release."""
    folder: Path | None = None
    """Folder of releases; none: the packaged ones."""
    per_group: int = 10
    """Prompts of each group, an even number."""
    seed: int = 0
    """Seed of the splits; clip i has seed i."""
    out: Path = ROOT / "docs" / "evaluation"
    """Folder of the table."""


def first_halves(groups: int, per_group: int, rng: np.random.Generator) -> np.ndarray:
    """Whether each item is in the first half, bool (N,): half of every group, drawn at random."""
    ranks = np.stack([rng.permutation(per_group) for _ in range(groups)])
    return (ranks < per_group // 2).ravel()


def distances(clips: np.ndarray, pieces: np.ndarray, groups: int, seed: int) -> dict[str, np.ndarray]:
    """Distances (splits,) of embeddings (N, E), grouped: "clips" to pieces, and between halves of the "pieces"."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[float]] = {"clips": [], "pieces": []}
    for _ in range(SPLITS):
        first = first_halves(groups, len(pieces) // groups, rng)
        rows["clips"].append(frechet_distance(clips[first], pieces[~first]))
        rows["pieces"].append(frechet_distance(pieces[first], pieces[~first]))
    return {name: np.asarray(values) for name, values in rows.items()}


def edges_and_jumps(waves: list[np.ndarray]) -> dict[str, np.ndarray]:
    """For each wave (T,): the absolute first and last sample, and the largest step between neighbours."""
    return {
        "first": np.array([abs(wave[0]) for wave in waves]),
        "last": np.array([abs(wave[-1]) for wave in waves]),
        "jump": np.array([np.abs(np.diff(wave)).max() for wave in waves]),
    }


def distance_table(
    clips: list[np.ndarray], pieces: list[np.ndarray], groups: int, seed: int, mulan: MuLan
) -> list[str]:
    """Lines of the table of distances."""
    lines = [
        "| embedding | clips to pieces | halves of the pieces | ratio | target |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, embed in (("MuLan", mulan), ("log-mel statistics", LogMel())):
        points = [np.concatenate([embed(wave[None]) for wave in waves]) for waves in (clips, pieces)]
        means = {key: values.mean() for key, values in distances(*points, groups, seed).items()}
        ratio = means["clips"] / means["pieces"]
        lines.append(f"| {name} | {means['clips']:.3g} | {means['pieces']:.3g} | {ratio:.2f} | 1.5 |")
    return lines


def click_table(clips: list[np.ndarray], pieces: list[np.ndarray], model: str) -> list[str]:
    """Lines of the table of ends and jumps."""
    measured = {"composed": edges_and_jumps(pieces), model: edges_and_jumps(clips)}
    limit = np.quantile(measured["composed"]["jump"], 0.99)
    lines = [
        "| set | largest first sample | largest last sample | largest jump, median | 99th percentile | share above "
        "the composed 99th percentile |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, values in measured.items():
        jumps = values["jump"]
        lines.append(
            f"| {name} | {values['first'].max():.4f} | {values['last'].max():.4f} | {np.median(jumps):.2f} | "
            f"{np.quantile(jumps, 0.99):.2f} | {np.mean(jumps > limit):.3f} |"
        )
    return lines


def main() -> None:
    """Measures, prints and writes the tables."""
    arguments = tyro.cli(Arguments, description=__doc__)
    enable_compile_cache()
    melody = load(arguments.model, folder=arguments.folder)
    seconds = melody.window_seconds
    prompts = composed_prompts.read_prompts(composed_prompts.PROMPTS)
    groups = list(dict.fromkeys(prompt.group for prompt in prompts))
    chosen = [
        prompt
        for group in groups
        for prompt in [p for p in prompts if p.group == group][: arguments.per_group]
    ]
    clips: list[np.ndarray] = []
    for first in tqdm(range(0, len(chosen), BATCH), unit="batch"):
        texts = [prompt.text for prompt in chosen[first : first + BATCH]]
        seeds = list(range(first, first + len(texts)))
        batch = melody.generate(texts, seconds=seconds, seed=seeds)
        clips += [Sound(clip, melody.audio_format).to() for clip in batch]
    pieces = [
        composed_prompts.ground_truth(prompt, number, seconds)
        for number, prompt in enumerate(tqdm(chosen, unit="piece"))
    ]
    mulan = MuLan(arguments.model, arguments.folder)
    page = "\n".join(
        [
            f"{len(chosen)} clips of {seconds:g} s, {arguments.per_group} of each group; means over {SPLITS} splits in "
            "halves.",
            "",
            *distance_table(clips, pieces, len(groups), arguments.seed, mulan),
            "",
            *click_table(clips, pieces, arguments.model),
            "",
        ]
    )
    print(page)
    (arguments.out / f"beside-composed-{arguments.model}.md").write_text(page)


if __name__ == "__main__":
    main()
