"""Speed and memory of `melody evaluate` over 10,000 clips.

    python benchmarks/evaluate_many.py --shards corpus/audio

The clips are composed music from the shards, each rotated by another number of samples. For a quick run give
`--embedding benchmarks/log_mel_embedding.py --seconds 2`. `--features` also computes the features for the
judges.
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

from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.evaluation.clips import Clip, ClipSet, open_set
from melody_jax.evaluation.embed_clips import Share, measure
from melody_jax.evaluation.embedding import open_embedding
from melody_jax.evaluation.frechet import Moments
from melody_jax.evaluation.metrics import distances
from melody_jax.evaluation.sound import Sound
from melody_jax.runtime import enable_compile_cache

STEPS = 10
"""Number of parts; memory is printed after each."""


@dataclass(frozen=True)
class Arguments:
    """Size of the benchmark."""

    shards: Path
    """Audio shards of composed music."""
    clips: int = 10_000
    """Number of clips."""
    seconds: float = 10.24
    """Length of a clip."""
    embedding: str = "mini"
    """A release or a Python file (evaluation/embedding.py)."""
    features: bool = False
    """Compute the features for the judges too."""


def resident_mib() -> float:
    """Resident memory of the process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Prints one JSON line per part, and one for the distances."""
    arguments = tyro.cli(Arguments, description=__doc__)
    enable_compile_cache()
    embedding = open_embedding(arguments.embedding)
    sounds = [
        clip.read().to()[: round(SAMPLE_RATE * arguments.seconds)]
        for clip in open_set(arguments.shards).clips[:40]
    ]

    def read(number: int) -> Sound:
        return Sound(np.roll(sounds[number % len(sounds)], 97 * number))

    clips = [Clip(name=str(i), read=partial(read, i)) for i in range(arguments.clips)]
    folder = Path(tempfile.mkdtemp())
    embeddings = []
    try:
        for part in range(STEPS):
            part_clips = clips[part * len(clips) // STEPS : (part + 1) * len(clips) // STEPS]
            started = time.perf_counter()
            share = Share(cache=folder, seconds=arguments.seconds)
            rows = measure(
                ClipSet(where=str(part), sha256=str(part), clips=part_clips),
                embedding,
                share,
                arguments.features,
            )
            assert rows is not None
            embeddings.append(rows.embeddings)
            rate = len(part_clips) / (time.perf_counter() - started)
            print(json.dumps({"clips": (part + 1) * len(part_clips), "clips_per_second": round(rate, 2),
                              "resident_mib": round(resident_mib())}), flush=True)  # fmt: skip
    finally:
        shutil.rmtree(folder)
    all_clips = np.concatenate(embeddings)
    started = time.perf_counter()
    distances(all_clips[::2], Moments.of(all_clips[1::2]), all_clips[1::2], 200, 0)
    print(json.dumps({"seconds_of_distances": round(time.perf_counter() - started, 1),
                      "resident_mib": round(resident_mib())}))  # fmt: skip


if __name__ == "__main__":
    main()
