"""Distances between decoded and original audio for the autoencoder's losses (training/stages/vae.py).

B batch, T samples, C channels.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from melody_jax import spectral
from melody_jax.models.discriminators import Discrimination


def balanced(
    gradient: Float[Array, "..."], reference: Float[Array, "..."], share: float
) -> Float[Array, "..."]:
    """`gradient` scaled to `share` times the norm of `reference`; zeros stay zeros."""
    return gradient * share * jnp.linalg.norm(reference) / jnp.maximum(jnp.linalg.norm(gradient), 1e-12)


def discriminator_loss(real: list[Discrimination], fake: list[Discrimination]) -> Float[Array, ""]:
    """Least squares: real towards one, decoded towards zero, summed over discriminators."""
    loss = jnp.float32(0)
    for (real_logits, _), (fake_logits, _) in zip(real, fake, strict=True):
        loss += jnp.mean((real_logits - 1) ** 2) + jnp.mean(fake_logits**2)
    return loss


def views(audio: Array) -> Array:
    """What the spectral losses look at: audio (B, T), or of two channels both, their sum and their difference (4 B, T).

    Sum and difference are divided by the root of 2, which keeps the energy.
    """
    if audio.ndim == 2:
        return audio
    left = audio[..., 0]
    right = audio[..., 1]
    scale = 0.5**0.5
    return jnp.concatenate([left, right, scale * (left + right), scale * (left - right)])


def log_mel(rows: Array, sample_rate: int) -> Array:
    """Log mel magnitudes of windows of 43 ms every 10 ms, whatever the sample rate."""
    return spectral.log_mel(rows, *spectral.mel_frame(sample_rate), sample_rate=sample_rate)


def distance(a: Array, b: Array, weights: np.ndarray | None = None, quantile: float = 0.5) -> Array:
    """Mean distance of `a` from `b`; the `a` that minimises it is that quantile of b's values (the pinball loss)."""
    error = jnp.abs(a - b)
    if quantile != 0.5:
        error = error * 2 * jnp.where(a < b, quantile, 1 - quantile)
    return jnp.mean(error if weights is None else error * weights)


def average(terms: list[Array]) -> Array:
    """The mean of scalars; 0 without any."""
    return sum(terms, jnp.float32(0)) / max(len(terms), 1)
