"""Classifier-free guidance of a diffusion, and its loudness (MeLoDy, arXiv 2305.15719, section 5.1).

B batch, L latent frames, D latent width.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

Velocity = Float[Array | np.ndarray, "B L D"]

SMALLEST_DEVIATION = 1e-6
"""Standard deviation below which a guided velocity is not scaled up."""


def guide(conditional: Velocity, null: Velocity, scale: ArrayLike) -> Float[Array, "B L D"]:
    """g v(condition) + (1 - g) v(null): scale 1 is the conditional velocity, 0 the null one, above 1 extrapolates."""
    scale = jnp.asarray(scale, jnp.float32)
    return scale * conditional + (1 - scale) * null


def guided(
    evaluate: Callable[[Array, Array], Array],
    scale: Float[Array, " B"],
    amount: Float[Array, " B"],
    is_new: Bool[Array | np.ndarray, "*B L"] | None = None,
) -> Callable[[Array, Array], Array]:
    """The function (noisy (B, L, D), angle (B, L)) -> guided velocity.

    evaluate: the same function of a doubled batch: the first half sees the condition, the second half is the null
    branch. scale, amount, is_new: as in `guide` and `rescale`.
    """

    def velocity(noisy: Array, angle: Array) -> Array:
        conditional, null = jnp.split(evaluate(jnp.tile(noisy, (2, 1, 1)), jnp.tile(angle, (2, 1))), 2)
        return rescale(
            guide(conditional, null, scale[:, None, None]), conditional, amount[:, None, None], is_new
        )

    return velocity


def rescale(
    guided: Velocity,
    conditional: Velocity,
    amount: ArrayLike,
    is_new: Bool[Array | np.ndarray, "*B L"] | None = None,
) -> Float[Array, "B L D"]:
    """The guided velocity with the standard deviation of the conditional one (arXiv 2305.08891, section 3.4).

    Guidance enlarges the latents, and so makes the music louder. amount: 1 undoes that, 0 leaves it. The deviation is
    an item's, over all its frames that `is_new` (None: all); without any, the velocity stays as it is.
    """
    new = jnp.ones(guided.shape[:2], bool) if is_new is None else jnp.asarray(is_new)
    weight = jnp.broadcast_to(new[..., None], guided.shape).astype(jnp.float32)
    weight = weight / jnp.maximum(weight.sum(axis=(1, 2), keepdims=True), 1)

    def deviation(velocity: Velocity) -> Array:
        mean = (weight * velocity).sum(axis=(1, 2), keepdims=True)
        return jnp.sqrt((weight * jnp.square(velocity - mean)).sum(axis=(1, 2), keepdims=True))

    floor = SMALLEST_DEVIATION
    ratio = jnp.maximum(deviation(conditional), floor) / jnp.maximum(deviation(guided), floor)
    amount = jnp.asarray(amount, jnp.float32)
    return (amount * ratio + 1 - amount) * guided
