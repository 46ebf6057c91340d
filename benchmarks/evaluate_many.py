"""How many clips a second `melody evaluate` measures, and whether its memory stays where it is over 10,000 clips.

    python benchmarks/evaluate_many.py --shards corpus/audio

Clips are composed music from the shards, over and over from memory, each turned by another number of
samples. `--embedding benchmarks/log_mel_embedding.py --seconds 2` is a long run in short time; `--listen`
adds what the judges of adherence need.
"""

import json
import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from melody_jax.evaluation.clips import Clip, ClipSet, open_set
from melody_jax.evaluation.embed_clips import Share, measure
from melody_jax.evaluation.embedding import open_embedding
from melody_jax.evaluation.frechet import Moments
from melody_jax.evaluation.metrics import distances
from melody_jax.runtime import enable_compile_cache

STEPS = 10
"""Parts in which the clips are measured, with the memory noted after each."""


@dataclass(frozen=True)
class Arguments:
    """What is measured."""

    shards: Path
    """Audio shards of composed music."""
    clips: int = 10_000
    """Clips."""
    seconds: float = 10.24
    """Length of a clip."""
    embedding: str = "mini"
    """A release or a Python file (evaluation/embedding.py)."""
    listen: bool = False
    """Whether judges shall hear the clips."""


def resident_mib() -> float:
    """What the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Measures and prints one JSON line a part, and one for the figures at the end."""
    arguments = tyro.cli(Arguments, description=__doc__)
    enable_compile_cache()
    embedding = open_embedding(arguments.embedding)
    sounds = [
        clip.read()[: round(24_000 * arguments.seconds)] for clip in open_set(arguments.shards).clips[:40]
    ]

    def read(number: int) -> np.ndarray:
        return np.roll(sounds[number % len(sounds)], 97 * number)

    clips = [Clip(name=str(i), read=partial(read, i)) for i in range(arguments.clips)]
    folder, points = Path(tempfile.mkdtemp()), []
    try:
        for part in range(STEPS):
            mine = clips[part * len(clips) // STEPS : (part + 1) * len(clips) // STEPS]
            started = time.perf_counter()
            share = Share(cache=folder, seconds=arguments.seconds)
            rows = measure(
                ClipSet(where=str(part), sha256=str(part), clips=mine), embedding, share, arguments.listen
            )
            assert rows is not None
            points.append(rows.points)
            rate = len(mine) / (time.perf_counter() - started)
            print(json.dumps({"clips": (part + 1) * len(mine), "clips_a_second": round(rate, 2),
                              "resident_mib": round(resident_mib())}), flush=True)  # fmt: skip
    finally:
        shutil.rmtree(folder)
    whole = np.concatenate(points)
    started = time.perf_counter()
    distances(whole[::2], Moments.of(whole[1::2]), whole[1::2], 200, 0)
    print(json.dumps({"seconds_of_distances": round(time.perf_counter() - started, 1),
                      "resident_mib": round(resident_mib())}))  # fmt: skip


if __name__ == "__main__":
    main()
