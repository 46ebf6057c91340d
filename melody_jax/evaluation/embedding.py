"""Embeddings that distances are measured in: the music tower of a released MuLan, or one that the user brings.

A user's embedding is a Python file (trusted: it is run) with a function `embedding()`, which returns an object:

    name              text, how results name it: network, layer and weights
    files             paths of its weights, hashed into the result; may be ()
    sample_rate       Hz at which it wants sound; it is resampled from 24 kHz
    __call__(waves)   float32 (B, T) mono in [-1, 1] -> (B, E)
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import audio
from melody_jax.data.records import file_hash
from melody_jax.errors import UserError
from melody_jax.models import mulan
from melody_jax.python_file import function_of
from melody_jax.sampling.cascade import load
from melody_jax.sampling.prompts import PromptEncoder

WINDOW = 245_760
"""Samples that MuLan hears at a time, 10.24 s as in its training; of longer clips windows are averaged."""


class Embedding(Protocol):
    """From sound to points."""

    @property
    def name(self) -> str:
        """Of network and weights, as results show it."""
        ...

    @property
    def sha256(self) -> str:
        """Changes with whatever changes its points."""
        ...

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        """Sound float32 (B, T) at 24 kHz -> points (B, E)."""
        ...


class MuLan:
    """The music tower of a released MuLan, and its text tower for `cycle`."""

    def __init__(self, model: str, folder: Path | None = None) -> None:
        melody = load(model, folder=folder, networks=("mulan",))
        assert melody.tokenizer is not None
        self.sha256, self._tokenizer = melody.hashes["mulan"], melody.tokenizer
        self.name = f"MuLan of {model} ({self.sha256[:12]})"
        self._params, self._config = melody.params["mulan"], melody.configs["mulan"]
        self._embed = partial(jax.jit(mulan.embed_music, static_argnums=1), self._params, self._config)

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        """Means (B, E) of the unit embeddings of the windows of sound (B, T); a clip under a window is heard as it is.

        What is left at the end of the last whole window is not heard.
        """
        size = min(WINDOW, waves.shape[1])
        windows = range(0, waves.shape[1] - size + 1, size)
        return np.mean(
            [self._embed(jnp.asarray(waves[:, start : start + size])) for start in windows], axis=0
        )

    def cycle(self, points: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Cosine (N,) of each clip (N, E), as `__call__` gave it, with its prompt, both centred as prefixes are.

        Raises `UserError` for a prompt that is too long.
        """
        encoder = PromptEncoder(self._params, self._config, self._tokenizer, WINDOW)
        targets = {prompt: encoder.target(prompt) for prompt in dict.fromkeys(prompts)}
        heard = np.asarray(mulan.centre(self._params, jnp.asarray(points), "music"))
        return np.sum(heard * np.stack([targets[prompt] for prompt in prompts]), axis=1)


class _Brought:
    """A user's embedding with its checks."""

    def __init__(self, file: Path, inner: Any) -> None:
        missing = [part for part in ("name", "files", "sample_rate") if not hasattr(inner, part)]
        if missing or not callable(inner):
            raise UserError(
                f"{file}: what embedding() returns has no {missing[0] if missing else '__call__'}"
            )
        self.file, self._inner = file, inner
        digest = hashlib.sha256("".join(file_hash(path) for path in (file, *inner.files)).encode())
        self.sha256 = digest.hexdigest()
        self.name = f"{inner.name} ({self.sha256[:12]})"

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        rate = self._inner.sample_rate
        resampled = np.stack([audio.resample(wave, audio.SAMPLE_RATE, rate) for wave in waves])
        points = np.asarray(self._inner(resampled), np.float32)
        if points.ndim != 2 or len(points) != len(waves) or not np.isfinite(points).all():
            raise UserError(
                f"{self.file}: gave points of shape {points.shape} or not finite for {len(waves)} clips"
            )
        return points


def open_embedding(which: str, folder: Path | None = None) -> Embedding:
    """The MuLan of the released model `which` (in `folder`, or of the package), or that of the Python file `which`.

    Raises `UserError` if there is no such release, or the file is not as the module says.
    """
    if not which.endswith(".py"):
        return MuLan(which, folder)
    file = Path(which)
    if not file.is_file():
        raise UserError(f"{file}: no such file; an embedding is a release's name or a Python file")
    return _Brought(file, function_of(file, "embedding")())
