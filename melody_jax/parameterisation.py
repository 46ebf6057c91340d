"""Objectives: what a backbone predicts, and the angular velocity that follows, exactly in both directions.

Training and sampling mix latents x and noise e by an angle d (melody_jax/diffusion.py), z = cos(d) x + sin(d) e, and
use the velocity v = cos(d) e - sin(d) x only. A backbone F may take z at another scale and angle and predict another
mixture. As in EDM (Karras et al. 2022, arXiv 2206.00364), preconditioning relates the two:

    v = c_skip z + c_out F(c_in z, c_noise)

    v               F is v itself (the paper): c_in = c_out = 1, c_noise = d, c_skip = 0
    trigflow        F is the velocity of latents divided by their standard deviation, sigma_data (Lu and Song 2024,
                    arXiv 2410.11081), at the angle t where these and e are mixed as in z: tan t = tan(d) / sigma_data.
                    With q^2 = sigma_data^2 cos^2 + sin^2: c_in = 1 / q, c_noise = t, c_out = sigma_data / q,
                    c_skip = sin cos (1 - sigma_data^2) / q^2. With sigma_data 1 it equals v
    rectified_flow  F is e - x, the velocity of straight paths (1 - t) x + t e at t = sin / (cos + sin).
                    With n = cos + sin: c_in = c_out = 1 / n, c_noise = d, c_skip = (cos - sin) / n

The squared error of F is that of v over c_out^2, which is how losses are weighted (`loss_weight`).

Legend: B batch, L latent frames, D latent width.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Objective = Literal["v", "trigflow", "rectified_flow"]


class Preconditioning(NamedTuple):
    """v = c_skip z + c_out F(c_in z, c_noise); all in the shape of the angle."""

    c_in: Float[Array, "*shape"]
    c_noise: Float[Array, "*shape"]
    c_skip: Float[Array, "*shape"]
    c_out: Float[Array, "*shape"]


def _velocity(angle: Float[Array, "*shape"], sigma_data: float) -> Preconditioning:
    one = jnp.ones_like(angle)
    return Preconditioning(c_in=one, c_noise=angle, c_skip=0 * one, c_out=one)


def _trigflow(angle: Float[Array, "*shape"], sigma_data: float) -> Preconditioning:
    cos = jnp.cos(angle)
    sin = jnp.sin(angle)
    q = jnp.sqrt((sigma_data * cos) ** 2 + sin**2)
    return Preconditioning(
        c_in=1 / q,
        c_noise=jnp.arctan2(sin, sigma_data * cos),
        c_skip=sin * cos * (1 - sigma_data**2) / q**2,
        c_out=sigma_data / q,
    )


def _rectified_flow(angle: Float[Array, "*shape"], sigma_data: float) -> Preconditioning:
    cos = jnp.cos(angle)
    sin = jnp.sin(angle)
    n = cos + sin
    return Preconditioning(c_in=1 / n, c_noise=angle, c_skip=(cos - sin) / n, c_out=1 / n)


OBJECTIVES: dict[Objective, Callable[[Array, float], Preconditioning]] = {
    "v": _velocity,
    "trigflow": _trigflow,
    "rectified_flow": _rectified_flow,
}
"""Name -> preconditioning of an angle, given sigma_data."""


def velocity(
    objective: Objective,
    sigma_data: float,
    backbone: Callable[[Array, Array], Array],
    noisy: Float[Array, "B L D"],
    angle: Float[Array, "B L"],
) -> Float[Array, "B L D"]:
    """The velocity (B, L, D) of noisy latents at an angle (B, L), predicted by `backbone`(noisy, angle)."""
    if objective == "v":
        return backbone(noisy, angle)
    c_in, c_noise, c_skip, c_out = OBJECTIVES[objective](angle.astype(jnp.float32), sigma_data)
    output = backbone(noisy * c_in[..., None], c_noise)
    return c_skip[..., None] * noisy + c_out[..., None] * output


def loss_weight(objective: Objective, sigma_data: float, angle: Float[Array, "B L"]) -> Float[Array, "B L"]:
    """(B, L): factor that turns the velocity's squared error into that of the backbone's output."""
    return 1 / OBJECTIVES[objective](angle, sigma_data).c_out ** 2


def angle_from_noise_input(
    objective: Objective, sigma_data: float, c_noise: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """The angle d at which the backbone's noise input is `c_noise`; 0 stays exactly 0."""
    if objective != "trigflow":
        return c_noise
    angle = jnp.arctan2(sigma_data * jnp.sin(c_noise), jnp.cos(c_noise))
    return jnp.where(c_noise > 0, angle, 0.0)
