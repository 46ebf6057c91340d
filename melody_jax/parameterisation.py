"""What a backbone predicts, and the angular velocity that follows: a thin shell, exact both ways.

Training and sampling mix latents x and noise e by an angle d (melody_jax/diffusion.py), z = cos(d) x + sin(d) e, and
know the velocity v = cos(d) e - sin(d) x alone. A backbone F may see z at another scale and angle and predict another
mixture; then v = keep z + gain F(scale z, angle):

    v               F is v itself (the paper)
    trigflow        F is the velocity of latents divided by their standard deviation, sigma_data (Lu and Song 2024,
                    arXiv 2410.11081), at the angle t where these and e are mixed as in z: tan t = tan(d) / sigma_data.
                    With q^2 = sigma_data^2 cos^2 + sin^2: scale 1 / q, gain sigma_data / q, keep
                    sin cos (1 - sigma_data^2) / q^2. Of latents of deviation 1 it is v
    rectified_flow  F is e - x, the velocity of straight paths (1 - t) x + t e at t = sin / (cos + sin).
                    With n = cos + sin: scale and gain 1 / n, keep (cos - sin) / n

F's squared error is that of v over gain^2, which is how losses are weighted (`loss_weight`).

Legend: B batch, L latent frames, D latent width.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Objective = Literal["v", "trigflow", "rectified_flow"]


class Shell(NamedTuple):
    """v = keep z + gain F(scale z, angle); all (B, L)."""

    scale: jax.Array
    angle: jax.Array
    keep: jax.Array
    gain: jax.Array


def _velocity(angle: jax.Array, sigma_data: float) -> Shell:
    one = jnp.ones_like(angle)
    return Shell(one, angle, 0 * one, one)


def _trigflow(angle: jax.Array, sigma_data: float) -> Shell:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    q = jnp.sqrt((sigma_data * cos) ** 2 + sin**2)
    return Shell(
        1 / q, jnp.arctan2(sin, sigma_data * cos), sin * cos * (1 - sigma_data**2) / q**2, sigma_data / q
    )


def _rectified_flow(angle: jax.Array, sigma_data: float) -> Shell:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    n = cos + sin
    return Shell(1 / n, angle, (cos - sin) / n, 1 / n)


OBJECTIVES: dict[Objective, Callable[[jax.Array, float], Shell]] = {
    "v": _velocity,
    "trigflow": _trigflow,
    "rectified_flow": _rectified_flow,
}


def velocity(
    objective: Objective,
    sigma_data: float,
    network: Callable[[jax.Array, jax.Array], jax.Array],
    noisy: jax.Array,
    angle: jax.Array,
) -> jax.Array:
    """The velocity (B, L, D) of noisy latents at an angle (B, L) by `network`(noisy, angle), the backbone."""
    if objective == "v":
        return network(noisy, angle)
    shell = OBJECTIVES[objective](angle.astype(jnp.float32), sigma_data)
    said = network(noisy * shell.scale[..., None], shell.angle)
    return shell.keep[..., None] * noisy + shell.gain[..., None] * said


def loss_weight(objective: Objective, sigma_data: float, angle: jax.Array) -> jax.Array:
    """(B, L): what a squared error of the velocity is multiplied with to be that of what the backbone predicts."""
    return 1 / OBJECTIVES[objective](angle, sigma_data).gain ** 2


def drawn_angle(objective: Objective, sigma_data: float, angle: jax.Array) -> jax.Array:
    """The angle d at which the backbone is shown its own `angle`; 0 stays exactly 0."""
    if objective != "trigflow":
        return angle
    return jnp.where(angle > 0, jnp.arctan2(sigma_data * jnp.sin(angle), jnp.cos(angle)), 0.0)
