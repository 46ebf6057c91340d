"""A held-out error of a diffusion at the angle of its draws, and at fixed angles."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from melody_jax.training.stage import Metrics

FIXED_ANGLES = (0.2, 0.6, 1.0, 1.4)
"""Angles at which evaluations report the error, radians."""


def error_at_angles(
    error: Callable[[Float[Array, "B L"]], Float[Array, ""]], angle: Float[Array, "B L"]
) -> tuple[Float[Array, ""], Metrics]:
    """The error at `angle`, and {"loss_at_0.2": ...}, with all frames at each of `FIXED_ANGLES`.

    error(angle (B, L)) is compiled once for all of them.
    """
    angles = jnp.stack([angle, *(jnp.full_like(angle, fixed) for fixed in FIXED_ANGLES)])
    drawn, *at_fixed = jax.lax.map(error, angles)
    return drawn, {f"loss_at_{fixed}": value for fixed, value in zip(FIXED_ANGLES, at_fixed, strict=True)}
