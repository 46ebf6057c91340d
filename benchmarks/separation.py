"""Do the distances of `melody evaluate` rank sets with a known order of quality?

    python benchmarks/separation.py --shards corpus/audio
    python benchmarks/separation.py --shards corpus/audio --embedding benchmarks/log_mel_embedding.py

The reference is one half of the pieces of every second genre. It is compared with the other half; with copies
of the other half, shifted up by 1 and 4 semitones or low-passed at 8, 4 and 2 kHz; with pieces of the
remaining genres; and with white noise. All sets have equal numbers of clips of 10.24 s. Writes
separation-<embedding>.{json,md} with the distances and with the expectations that hold.
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

from melody_jax import audio, loudness
from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.evaluation.clips import Clip, ClipSet, open_set
from melody_jax.evaluation.embed_clips import Share, measure
from melody_jax.evaluation.embedding import open_embedding
from melody_jax.evaluation.frechet import Moments
from melody_jax.evaluation.metrics import distances
from melody_jax.evaluation.sound import Sound
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
"""Pairs whose first set must be closer to the reference, with disjoint intervals."""


@dataclass(frozen=True)
class Arguments:
    """Inputs and outputs."""

    shards: Path
    """Audio shards of composed music."""
    out: Path = Path(__file__).parents[1] / "docs" / "evaluation"
    """Folder of the table."""
    cache: Path = Path("runs/evaluation")
    """Folder of measured clips."""
    embedding: str = "mini"
    """A release or a Python file (evaluation/embedding.py)."""
    draws: int = 200
    """Bootstrap resamples per interval."""


def noise(wave: np.ndarray) -> np.ndarray:
    """White noise of the clip's length, normalised in loudness and seeded by the clip."""
    seed = int.from_bytes(hashlib.sha256(wave.tobytes()).digest()[:4])
    drawn = np.random.default_rng(seed).normal(0, 0.1, len(wave)).astype(np.float32)
    return loudness.peak_limit(loudness.normalise(drawn))


def low_passed(hertz: float, wave: np.ndarray) -> np.ndarray:
    """The clip low-passed at `hertz` (Butterworth, 8th order, forward and backward)."""
    sections = signal.butter(8, hertz, fs=SAMPLE_RATE, output="sos")
    return signal.sosfiltfilt(sections, wave).astype(np.float32)


def shifted(semitones: int, wave: np.ndarray) -> np.ndarray:
    """The clip raised by semitones and faster by the same factor, like a tape that runs too fast."""
    return audio.resample(wave, round(SAMPLE_RATE * 2 ** (semitones / 12)), SAMPLE_RATE)


def changed(
    clips: list[Clip], name: str, change: Callable[[np.ndarray], np.ndarray] | None = None
) -> ClipSet:
    """10.24 s of each clip after the change; the set's hash includes both."""

    def read(clip: Clip) -> Sound:
        wave = clip.read().to()[: round(16 * SAMPLE_RATE)]
        return Sound((wave if change is None else change(wave))[: round(10.24 * SAMPLE_RATE)])

    digest = hashlib.sha256("\n".join([name, *(clip.name for clip in clips)]).encode()).hexdigest()
    return ClipSet(where=name, sha256=digest, clips=[replace(c, read=partial(read, c)) for c in clips])


def sets(clips: list[Clip]) -> dict[str, ClipSet]:
    """The reference and the sets that are compared with it, all of equal size."""
    genres = sorted({str((clip.facts or {})["genre"]) for clip in clips})
    chosen = [clip for clip in clips if (clip.facts or {})["genre"] in genres[::2]]
    others = [clip for clip in clips if (clip.facts or {})["genre"] not in genres[::2]]
    size = min(len(chosen) // 2, len(others))
    half = chosen[: 2 * size : 2]
    other_half = chosen[1 : 2 * size : 2]
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
    """Measures, prints and writes the tables."""
    arguments = tyro.cli(Arguments, description=__doc__)
    enable_compile_cache()
    corpus = open_set(arguments.shards)
    embedding = open_embedding(arguments.embedding)
    share = Share(cache=arguments.cache)
    embeddings = {}
    for name, clips in sets(corpus.clips).items():
        rows = measure(replace(clips, sha256=f"{corpus.sha256}{clips.sha256}"), embedding, share)
        assert rows is not None
        embeddings[name] = rows.embeddings
    reference = embeddings.pop("reference")
    results = {
        name: distances(values, Moments.of(reference), reference, arguments.draws, 0)
        for name, values in embeddings.items()
    }
    columns = [name for name in ("frechet", "frechet_infinite", "kernel") if name in results["halves"]]
    lines = [
        f"Embedding: {embedding.name}. Reference: {len(reference)} pieces of {corpus.name}; 95 % intervals.",
        "",
    ]
    lines += [
        "| set | pieces | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * (1 + len(columns)),
    ]
    for name in results:
        cells = (str(results[name][column]) for column in columns)
        lines.append(f"| {name} | {results[name]['clips']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| expectation | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for near, far in EXPECTED:
        holds = (
            "yes" if results[near][column].high < results[far][column].low else "no" for column in columns
        )
        lines.append(f"| {near} closer than {far} | {' | '.join(holds)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    record = {
        "draws": arguments.draws,
        "corpus": corpus.sha256,
        "embedding": embedding.name,
        "distances": results,
    }
    name = f"separation-{Path(arguments.embedding).stem}"
    (arguments.out / f"{name}.md").write_text(text)
    (arguments.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
