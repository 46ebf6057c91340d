"""Channels of audio as rows of a batch, for transforms that take one channel at a time, and as features of a frame.

Audio is (B, T) if it is mono, (B, T, C) if it has C channels. Rows are the channels of the first item, then those of
the second, and so on.

B batch, T samples, C channels, F frames, N values of a frame.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from melody_jax import spectral
from melody_jax.audio import CANCELLED
from melody_jax.audio_format import DEFAULT_FORMAT, AudioFormat


def default_format(audio: Float[Array | np.ndarray, " B T *C"], source: AudioFormat) -> Float[Array, "B _"]:
    """Audio in the format that MuLan and the tokenizer hear, 24 kHz mono, inside a traced function.

    The channels are averaged, or where they cancel each other the loudest is used (as in `audio.mix`); T is a multiple
    of `source.token_samples`.
    """
    audio = jnp.asarray(audio)
    if source.channels > 1:
        mono = audio.mean(axis=2)
        energies = jnp.sum(audio**2, axis=1)
        cancels = jnp.sum(mono**2, axis=1) < CANCELLED * energies.mean(axis=1)
        loudest = jnp.take_along_axis(audio, energies.argmax(axis=1)[:, None, None], axis=2)[..., 0]
        audio = jnp.where(cancels[:, None], loudest, mono)
    if source.sample_rate == DEFAULT_FORMAT.sample_rate:
        return audio
    divisor = math.gcd(source.sample_rate, DEFAULT_FORMAT.sample_rate)
    return spectral.resample(audio, DEFAULT_FORMAT.sample_rate // divisor, source.sample_rate // divisor)


def to_rows(audio: Float[Array, " B T *C"]) -> Float[Array, " _ T"]:
    """Audio (B, T) or (B, T, C) to rows (B * C, T)."""
    return audio if audio.ndim == 2 else audio.swapaxes(1, 2).reshape(-1, audio.shape[1])


def from_rows(rows: Float[Array, "_ T"], channels: int) -> Float[Array, " B T *C"]:
    """Rows (B * C, T) to audio (B, T), or (B, T, C) if there are several channels."""
    return rows if channels == 1 else rows.reshape(-1, channels, rows.shape[1]).swapaxes(1, 2)


def rows_to_features(frames: Float[Array, "_ F N"], channels: int) -> Float[Array, "B F _"]:
    """Frames of rows (B * C, F, N) to frames of items (B, F, C * N)."""
    rows, length, size = frames.shape
    return frames.reshape(-1, channels, length, size).swapaxes(1, 2).reshape(rows // channels, length, -1)


def features_to_rows(frames: Float[Array, "B F _"], channels: int) -> Float[Array, "_ F N"]:
    """The inverse of `rows_to_features`."""
    batch, length, _ = frames.shape
    return frames.reshape(batch, length, channels, -1).swapaxes(1, 2).reshape(batch * channels, length, -1)
