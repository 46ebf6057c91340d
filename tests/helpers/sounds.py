"""Sound files for tests."""

from pathlib import Path

import numpy as np

from melody_jax import audio


def sounds(folder: Path, count: int, seconds: float = 0.5) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        audio.write(folder / f"{i:06d}.wav", rng.normal(0, 0.1, round(seconds * 24_000)).astype(np.float32))
    return folder
