"""Takes of a studio's project without a system."""

from typing import Any

import numpy as np

from helpers.fake_system import RATE
from melody_jax.sampling.request import Request
from melody_jax.studio.project import Project
from melody_jax.studio.takes import Release, Take

RELEASE = Release(name="mini")


def noise(seconds: float = 0.5, seed: int = 0, channels: int = 1) -> np.ndarray:
    shape = (round(seconds * RATE), channels)[: channels if channels > 1 else 1]
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


def add(project: Project, prompt: Any = "bossa nova", seed: int = 0, **settings: Any) -> Take:
    request = Request(prompt=prompt, seed=seed, **settings)
    return project.add_take(noise(seed=seed), RATE, request, RELEASE, model_hash="0" * 16)
