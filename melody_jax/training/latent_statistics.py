"""The mean and standard deviation of an autoencoder's latents, by which they are normalised after training."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from melody_jax.errors import UserError


def whiten(latents: Iterable[Float[Array, "B L D"]]) -> dict[str, jax.Array]:
    """{"latent_mean" (D,), "latent_scale" (D,)} of latents before normalisation.

    Raises `UserError` if there are none.
    """
    count = 0
    total = squares = jnp.zeros(())
    for batch in latents:
        raw = batch.reshape(-1, batch.shape[-1])
        count += len(raw)
        total = total + raw.sum(0)
        squares = squares + (raw * raw).sum(0)
    if count < 2:
        raise UserError("no audio to fit the latents' mean and scale on: at least one batch is needed")
    mean = total / count
    return {"latent_mean": mean, "latent_scale": jnp.sqrt(jnp.maximum(squares / count - mean**2, 1e-8))}
