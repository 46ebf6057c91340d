"""Does the evaluator tell apart what it must? Composed halves against what is worse in a known way.

    python benchmarks/separation.py --shards corpus/audio

The reference is one half of the pieces of every second genre. Against it: the other half (i); white noise (ii), copies
of the other half low-passed at 2 kHz (iii) or shifted up by 4 semitones (iv); pieces of the genres left out (v). All
sets have as many clips. Writes separation.{json,md} and fails if the distances are not in the order they must be in.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from scipy import signal

from melody_jax import audio
from melody_jax.evaluation.clips import Clip, ClipSet, open_set
from melody_jax.evaluation.embedding import open_embedding
from melody_jax.evaluation.figures import distances
from melody_jax.evaluation.frechet import Moments
from melody_jax.evaluation.intervals import Interval
from melody_jax.evaluation.measure import Share, measure
from melody_jax.process import enable_compile_cache

ORDER = ("halves", "pitch-shifted", "low-passed", "wrong genres", "white noise")
"""Halves must be nearest, noise furthest; the three between are in no order that is known beforehand."""


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


def low_passed(wave: np.ndarray) -> np.ndarray:
    """The clip without what is above 2 kHz (Butterworth, 8th order, both ways)."""
    sections = signal.butter(8, 2000, fs=audio.SAMPLE_RATE, output="sos")
    return signal.sosfiltfilt(sections, wave).astype(np.float32)


def shifted(wave: np.ndarray) -> np.ndarray:
    """The clip 4 semitones higher and hence a fifth shorter, as a tape played too fast."""
    return audio.resample(wave, round(audio.SAMPLE_RATE * 2 ** (4 / 12)), audio.SAMPLE_RATE)


def changed(clips: list[Clip], name: str, change: Callable[[np.ndarray], np.ndarray] | None = None) -> ClipSet:
    """Two pieces of each clip, changed; the set's hash says from what and how."""

    def read(clip: Clip) -> np.ndarray:
        wave = clip.read()[: round(26 * audio.SAMPLE_RATE)]
        return wave if change is None else change(wave)

    digest = hashlib.sha256("\n".join([name, *(clip.name for clip in clips)]).encode()).hexdigest()
    return ClipSet(where=name, sha256=digest, clips=[replace(c, read=lambda c=c: read(c)) for c in clips])


def sets(clips: list[Clip]) -> dict[str, ClipSet]:
    """The reference and what is measured against it, all of one size."""
    genres = sorted({str((clip.facts or {})["genre"]) for clip in clips})
    chosen = [clip for clip in clips if (clip.facts or {})["genre"] in genres[::2]]
    others = [clip for clip in clips if (clip.facts or {})["genre"] not in genres[::2]]
    size = min(len(chosen) // 2, len(others))
    half, other_half = chosen[: 2 * size : 2], chosen[1 : 2 * size : 2]
    return {
        "reference": changed(half, "reference"),
        "halves": changed(other_half, "halves"),
        "pitch-shifted": changed(other_half, "pitch-shifted", shifted),
        "low-passed": changed(other_half, "low-passed", low_passed),
        "wrong genres": changed(others[:size], "wrong genres"),
        "white noise": changed(other_half, "white noise", noise),
    }


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
        name: distances(mine, Moments.of(reference), reference, arguments.draws, 0) for name, mine in points.items()
    }
    columns = [name for name in ("frechet", "frechet_infinite", "kernel") if name in found["halves"]]
    lines = [f"Embedding: {embedding.name}. Reference: {len(reference)} pieces of {corpus.name}; 95 % intervals.", ""]
    lines += [
        "| against the reference | pieces | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * (1 + len(columns)),
    ]
    for name in ORDER:
        cells = (str(found[name][column]) for column in columns)
        lines.append(f"| {name} | {found[name]['clips']} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    settings = {name: value for name, value in asdict(arguments).items() if name in ("embedding", "draws")}
    record = {"settings": settings, "corpus": corpus.sha256, "embedding": embedding.name, "distances": found}
    (arguments.out / "separation.md").write_text(text)
    (arguments.out / "separation.json").write_text(json.dumps(record, indent=1) + "\n")
    for column in columns:
        ends: dict[str, Interval] = {name: found[name][column] for name in ORDER}
        between = [ends[name] for name in ORDER[1:-1]]
        nearest = all(ends["halves"].high < one.low for one in between)
        furthest = all(one.high < ends["white noise"].low for one in between)
        print(f"{column}: halves nearest {nearest}, white noise furthest {furthest}, without overlap")
        assert nearest, f"{column}: the halves are not the nearest"
        assert furthest, f"{column}: white noise is not the furthest"


if __name__ == "__main__":
    main()
