"""Does the evaluator tell apart what it must? Composed halves against what is worse in a known way.

    python benchmarks/separation.py --shards corpus/audio
    python benchmarks/separation.py --shards corpus/audio --embedding benchmarks/log_mel_embedding.py

The reference is one half of the pieces of every second genre. Against it: the other half; copies of the other half
shifted up by 1 and 4 semitones, and low-passed at 8, 4 and 2 kHz; pieces of the genres left out; white noise. All sets
have as many clips, 10.24 s of each. Writes separation-<embedding>.{json,md}, which also say which expectations held.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy import signal

from melody_jax import audio
from melody_jax.evaluation.clips import Clip, ClipSet, open_set
from melody_jax.evaluation.embed_clips import Share, measure
from melody_jax.evaluation.embedding import open_embedding
from melody_jax.evaluation.frechet import Moments
from melody_jax.evaluation.metrics import distances
from melody_jax.runtime import enable_compile_cache

EXPECTED = (
    ("halves", "shifted by 1"),
    ("shifted by 1", "shifted by 4"),
    ("halves", "low-passed at 8 kHz"),
    ("low-passed at 8 kHz", "low-passed at 4 kHz"),
    ("low-passed at 4 kHz", "low-passed at 2 kHz"),
    ("halves", "wrong genres"),
    ("shifted by 4", "white noise"),
    ("low-passed at 2 kHz", "white noise"),
    ("wrong genres", "white noise"),
)
"""Pairs of which the first must be nearer to the reference, without overlap of the intervals."""


@dataclass(frozen=True)
class Arguments:
    """What is measured."""

    shards: Path
    """Audio shards of composed music."""
    out: Path = Path(__file__).parents[1] / "docs" / "evaluation"
    """Folder of the table."""
    cache: Path = Path("runs/evaluation")
    """Folder of what was measured."""
    embedding: str = "mini"
    """A release or a Python file (evaluation/embedding.py)."""
    draws: int = 200
    """Redrawn sets an interval is made from."""


def noise(wave: np.ndarray) -> np.ndarray:
    """White noise as long and as loud as the clip, drawn from the clip itself."""
    seed = int.from_bytes(hashlib.sha256(wave.tobytes()).digest()[:4])
    drawn = np.random.default_rng(seed).normal(0, 0.1, len(wave)).astype(np.float32)
    return audio.peak_limit(audio.loudness_normalise(drawn))


def low_passed(hertz: float, wave: np.ndarray) -> np.ndarray:
    """The clip without what is above `hertz` (Butterworth, 8th order, both ways)."""
    sections = signal.butter(8, hertz, fs=audio.SAMPLE_RATE, output="sos")
    return signal.sosfiltfilt(sections, wave).astype(np.float32)


def shifted(semitones: int, wave: np.ndarray) -> np.ndarray:
    """The clip so much higher and as much faster, as a tape played too fast."""
    return audio.resample(wave, round(audio.SAMPLE_RATE * 2 ** (semitones / 12)), audio.SAMPLE_RATE)


def changed(
    clips: list[Clip], name: str, change: Callable[[np.ndarray], np.ndarray] | None = None
) -> ClipSet:
    """10.24 s of each clip, changed; the set's hash says from what and how."""

    def read(clip: Clip) -> np.ndarray:
        wave = clip.read()[: round(16 * audio.SAMPLE_RATE)]
        return (wave if change is None else change(wave))[: round(10.24 * audio.SAMPLE_RATE)]

    digest = hashlib.sha256("\n".join([name, *(clip.name for clip in clips)]).encode()).hexdigest()
    return ClipSet(where=name, sha256=digest, clips=[replace(c, read=partial(read, c)) for c in clips])


def sets(clips: list[Clip]) -> dict[str, ClipSet]:
    """The reference and what is measured against it, all of one size."""
    genres = sorted({str((clip.facts or {})["genre"]) for clip in clips})
    chosen = [clip for clip in clips if (clip.facts or {})["genre"] in genres[::2]]
    others = [clip for clip in clips if (clip.facts or {})["genre"] not in genres[::2]]
    size = min(len(chosen) // 2, len(others))
    half, other_half = chosen[: 2 * size : 2], chosen[1 : 2 * size : 2]
    copies: dict[str, Any] = {"halves": None}
    copies |= {f"shifted by {n}": partial(shifted, n) for n in (1, 4)}
    copies |= {f"low-passed at {n} kHz": partial(low_passed, 1000 * n) for n in (8, 4, 2)}
    return (
        {"reference": changed(half, "reference")}
        | {name: changed(other_half, name, change) for name, change in copies.items()}
        | {
            "wrong genres": changed(others[:size], "wrong genres"),
            "white noise": changed(other_half, "noise", noise),
        }
    )


def main() -> None:
    """Measures and writes the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    enable_compile_cache()
    corpus, embedding = open_set(arguments.shards), open_embedding(arguments.embedding)
    points, share = {}, Share(cache=arguments.cache)
    for name, clips in sets(corpus.clips).items():
        rows = measure(replace(clips, sha256=f"{corpus.sha256}{clips.sha256}"), embedding, share)
        assert rows is not None
        points[name] = rows.points
    reference = points.pop("reference")
    found = {
        name: distances(mine, Moments.of(reference), reference, arguments.draws, 0)
        for name, mine in points.items()
    }
    columns = [name for name in ("frechet", "frechet_infinite", "kernel") if name in found["halves"]]
    lines = [
        f"Embedding: {embedding.name}. Reference: {len(reference)} pieces of {corpus.name}; 95 % intervals.",
        "",
    ]
    lines += [
        "| against the reference | pieces | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * (1 + len(columns)),
    ]
    for name in found:
        cells = (str(found[name][column]) for column in columns)
        lines.append(f"| {name} | {found[name]['clips']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| must be nearer than | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for near, far in EXPECTED:
        held = ("yes" if found[near][column].high < found[far][column].low else "no" for column in columns)
        lines.append(f"| {near} than {far} | {' | '.join(held)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    record = {
        "draws": arguments.draws,
        "corpus": corpus.sha256,
        "embedding": embedding.name,
        "distances": found,
    }
    name = f"separation-{Path(arguments.embedding).stem}"
    (arguments.out / f"{name}.md").write_text(text)
    (arguments.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
