"""The diffusion's network, whatever its backbone: noisy latents and what they are to become, to a velocity.

A backbone is a file with a config derived from `DenoiserConfig`, which counts its products, and a `Conditioned` module
that takes noisy latents (B, L, D) and `Conditions` and gives latents (B, L, D); and a line in `NETWORKS`. What these
mean is the objective's affair (parameterisation.py): training, sampling, distillation and releases know this file
alone, and the velocity.

Legend: B batch, L latent frames, D latent width, U semantic tokens, P prefix levels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from melody_jax import parameterisation
from melody_jax.models import functional
from melody_jax.models.conditioning import Conditioned, DenoiserConfig, embedding_products
from melody_jax.models.dit import DiT, DiTConfig
from melody_jax.models.dpd import DPD, DPDConfig
from melody_jax.models.functional import Params
from melody_jax.models.unet1d import UNet1D, UNet1DConfig
from melody_jax.models.unet2d import UNet2D, UNet2DConfig

NETWORKS: dict[type[DenoiserConfig], Callable[..., Conditioned]] = {
    DPDConfig: DPD,
    UNet1DConfig: UNet1D,
    UNet2DConfig: UNet2D,
    DiTConfig: DiT,
}
"""Config -> network."""


def init(config: DenoiserConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters."""
    return functional.init(NETWORKS[type(config)], config, key=key)


def velocity(
    params: Params,
    config: DenoiserConfig,
    noisy: jax.Array,
    angle: jax.Array,
    semantic_tokens: jax.Array,
    conditioned: jax.Array | int,
    prefix_tokens: jax.Array | None = None,
    guidance_scale: jax.Array | None = None,
) -> jax.Array:
    """The velocity (B, L, D) of noisy latents, float32.

    noisy: (B, L, D); angle: (B, L) in [0, pi/2]; semantic_tokens: (B, U) int, U = L / frames_per_token.
    conditioned: either (B,) bool, any mixture of items with and without a condition, for training: cross-attention then
        computes both of its forms; or a Python int n, the first n items have a condition and the rest have none, for
        guidance: nothing is computed twice (`semantic_tokens` and `prefix_tokens` may then have n rows only).
    prefix_tokens: (B, P) int, -1 for an absent level; None is all absent. Unused without `prefix_conditioning`.
    guidance_scale: (B,) or a scalar within `guidance_range`; unused by a network without one.
    """
    backbone = functional.bind(NETWORKS[type(config)], config, params=params)

    def predict(noisy: jax.Array, angle: jax.Array) -> jax.Array:
        told = backbone.embed(angle, semantic_tokens, conditioned, prefix_tokens, guidance_scale)
        return backbone(noisy, told).astype(jnp.float32)

    return parameterisation.velocity(config.objective, config.sigma_data, predict, noisy, angle)


def flops(config: DenoiserConfig, frames: int | None = None) -> int:
    """Floating-point operations of the matmuls in one conditioned pass over one window of `frames` (default L)."""
    frames = config.frames if frames is None else frames
    return 2 * (embedding_products(config, frames) + config.products(frames))
