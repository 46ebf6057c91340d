"""Embeddings of clips for distances: the music tower of a released MuLan, or a user's own embedding.

A user's embedding is a Python file with a function `embedding()`. It is executed, so use only files that you
trust. The function returns an object with:

    name              name in results: network, layer and weights
    files             paths of its weights, hashed into the result; may be ()
    sample_rate       sample rate of its input in Hz; clips are resampled from their own
    channels          1 or 2 channels of its input; 1 if there is no such field
    __call__(waves)   float32 (B, T), or (B, T, 2) with 2 channels, in [-1, 1] -> (B, E)
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import release_folder
from melody_jax.audio_format import CHANNELS, DEFAULT_FORMAT, HIGHEST_RATE, AudioFormat
from melody_jax.errors import UserError
from melody_jax.files import file_hash
from melody_jax.models import mulan
from melody_jax.python_file import function_of
from melody_jax.sampling.cascade import load
from melody_jax.sampling.prompts import PromptEncoder

WINDOW = 245_760
"""Samples of MuLan's input, 10.24 s as in its training; the windows of longer clips are averaged."""


class Embedding(Protocol):
    """Maps clips to embeddings."""

    @property
    def name(self) -> str:
        """Name of network and weights in results."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of everything that the embeddings depend on."""
        ...

    @property
    def audio_format(self) -> AudioFormat:
        """Sample rate and channels of its input."""
        ...

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        """Embeds clips in its format: float32 (B, T) or (B, T, 2) -> (B, E)."""
        ...


class MuLan:
    """The music tower of a released MuLan as an `Embedding`, and its text tower for `cycle`."""

    audio_format = DEFAULT_FORMAT

    def __init__(self, model: str, folder: Path | None = None) -> None:
        melody = load(model, folder=folder, networks=("mulan",))
        assert melody.tokenizer is not None
        self.sha256 = melody.hashes["mulan"]
        self._tokenizer = melody.tokenizer
        self.name = f"MuLan of {model} ({self.sha256[:12]})"
        self._params = melody.params["mulan"]
        self._config = melody.configs["mulan"]
        self.width = self._config.embedding
        self._embed = partial(jax.jit(mulan.embed_music, static_argnums=1), self._params, self._config)

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        """Mean (B, E) of the unit embeddings of the windows of the clips (B, T), which cover all of them.

        The last window ends with the clip, as those of audio prompts do. A clip shorter than a window is embedded as
        it is.
        """
        size = min(WINDOW, waves.shape[1])
        ends = dict.fromkeys([*range(size, waves.shape[1], size), waves.shape[1]])
        windows = [self._embed(jnp.asarray(waves[:, end - size : end])) for end in ends]
        return np.mean(windows, axis=0)

    def cycle(self, embeddings: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Cosine (N,) between the embeddings (N, E) of clips and their prompts, both centred as for prefix
        tokens.

        Raises:
            UserError: a prompt is too long.
        """
        encoder = PromptEncoder(self._params, self._config, self._tokenizer, WINDOW)
        targets = {prompt: encoder.target(prompt) for prompt in dict.fromkeys(prompts)}
        centred = np.asarray(mulan.centre(self._params, jnp.asarray(embeddings), "music"))
        return np.sum(centred * np.stack([targets[prompt] for prompt in prompts]), axis=1)


class _UserEmbedding:
    """A user's embedding with checks."""

    def __init__(self, file: Path, inner: Any) -> None:
        missing = [part for part in ("name", "files", "sample_rate") if not hasattr(inner, part)]
        if missing or not callable(inner):
            raise UserError(
                f"{file}: the object that embedding() returns has no {missing[0] if missing else '__call__'}"
            )
        channels = getattr(inner, "channels", 1)
        rate = inner.sample_rate
        if type(rate) is not int or not 1_000 <= rate <= HIGHEST_RATE:
            raise UserError(f"{file}: sample_rate is {rate!r}; it must be an int from 1000 to {HIGHEST_RATE}")
        if type(channels) is not int or channels not in CHANNELS:
            raise UserError(f"{file}: channels is {channels!r}; it must be 1 or 2")
        self.file = file
        self.audio_format = AudioFormat(sample_rate=rate, channels=channels)
        self._inner = inner
        digest = hashlib.sha256("".join(file_hash(path) for path in (file, *inner.files)).encode())
        self.sha256 = digest.hexdigest()
        self.name = f"{inner.name} ({self.sha256[:12]})"

    def __call__(self, waves: np.ndarray) -> np.ndarray:
        embeddings = np.asarray(self._inner(waves), np.float32)
        if embeddings.ndim != 2 or len(embeddings) != len(waves) or not np.isfinite(embeddings).all():
            raise UserError(
                f"{self.file}: returned embeddings of shape {embeddings.shape} for {len(waves)} clips; they must be "
                f"finite and ({len(waves)}, E)"
            )
        return embeddings


def embedding_width(embedding: Embedding) -> int:
    """Width E of the embeddings: that of a MuLan's config; any other embedding embeds a window of noise."""
    if isinstance(embedding, MuLan):
        return embedding.width
    samples = WINDOW * embedding.audio_format.sample_rate // DEFAULT_FORMAT.sample_rate
    shape = (1, samples) if embedding.audio_format.channels == 1 else (1, samples, 2)
    noise = np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)
    return embedding(noise).shape[1]


def open_embedding(source: str, folder: Path | None = None) -> Embedding:
    """Opens the MuLan of a release, from `folder` or else packaged, or the embedding of a Python file.

    Raises:
        UserError: there is no such release, or the file does not follow this module's docstring.
    """
    if not source.endswith(".py"):
        is_packaged = (release_folder.root(None) / source).is_dir()
        has_release = folder is not None and (folder / source).is_dir()
        return MuLan(source, folder if has_release or not is_packaged else None)
    file = Path(source)
    if not file.is_file():
        raise UserError(f"{file}: no such file; an embedding is the name of a release or a Python file")
    return _UserEmbedding(file, function_of(file, "embedding")())
