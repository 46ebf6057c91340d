"""The diffusion's network, whatever its backbone: noisy latents and their conditioning to a velocity.

A backbone is one file and one line in `BACKBONES`. The file holds a config derived from `DenoiserConfig`, which counts
its multiply-accumulates, and a `Backbone` module that takes noisy latents (B, L, D), in a cascade with those of the
lower rate behind their channels, and a `Conditioning`, and returns latents (B, L, D). What these mean depends on the
objective (parameterisation.py). Training, sampling, distillation and releases use this file only, and the velocity.

Legend: B batch, L latent frames, D latent width, U semantic tokens, P prefix levels.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from melody_jax import parameterisation
from melody_jax.models import functional
from melody_jax.models.conditioning import (
    Backbone,
    DenoiserConfig,
    LowerFrames,
    WordPieces,
    embedding_macs,
)
from melody_jax.models.dit import DiT, DiTConfig
from melody_jax.models.dpd import DPD, DPDConfig
from melody_jax.models.functional import Params
from melody_jax.models.unet1d import UNet1D, UNet1DConfig
from melody_jax.models.unet2d import UNet2D, UNet2DConfig
from melody_jax.roles import Roles

BACKBONES: dict[type[DenoiserConfig], Callable[..., Backbone]] = {
    DPDConfig: DPD,
    UNet1DConfig: UNet1D,
    UNet2DConfig: UNet2D,
    DiTConfig: DiT,
}
"""Config -> backbone."""


def init(config: DenoiserConfig, key: PRNGKeyArray) -> Params:
    """Fresh float32 parameters."""
    return functional.init(BACKBONES[type(config)], config, key=key)


def roles(config: DenoiserConfig) -> Roles:
    """The role of every parameter."""
    return functional.roles(BACKBONES[type(config)], config)


def shapes(config: DenoiserConfig) -> Params:
    """The shape and type of every parameter."""
    return functional.shapes(BACKBONES[type(config)], config)


def velocity(
    params: Params,
    config: DenoiserConfig,
    noisy: Float[Array, "B L D"],
    angle: Float[Array, "B L"],
    semantic_tokens: Int[Array, "_ U"] | None,
    has_condition: Bool[Array, " B"] | int,
    prefix_tokens: Int[Array, "_ _"] | None = None,
    guidance_scale: Float[Array, "..."] | None = None,
    *,
    text: WordPieces | None = None,
    lower: LowerFrames | None = None,
) -> Float[Array, "B L D"]:
    """The velocity (B, L, D) of noisy latents, float32.

    noisy: (B, L, D); angle: (B, L) in [0, pi/2]; semantic_tokens: (B, U) int, U = L / frames_per_token, unused
        with `config.text` and by a network without tokens.
    has_condition: either (B,) bool, for training: any items may have a condition, and cross-attention computes both of
        its forms. Or a Python int N, for guidance: the first N items have a condition and the rest have none, nothing
        is computed twice, and N rows of `semantic_tokens` and `prefix_tokens` suffice.
    prefix_tokens: (B, P) int, or (B, P + C) with control tokens behind them, -1 for an absent one; None: all absent.
        The former are unused without `prefix_conditioning`, the latter without `controls`.
    guidance_scale: (B,) or a scalar within `guidance_range`; unused by a network without one.
    text: of a network with `config.text`; N rows suffice. lower: of a network with `config.lower_ratio`.
    """
    backbone = functional.bind(BACKBONES[type(config)], config, params=params)

    def predict(noisy: Array, angle: Array) -> Array:
        cond = backbone.embed(
            angle, semantic_tokens, has_condition, prefix_tokens, guidance_scale, text, lower
        )
        if lower is not None:
            raised = jnp.repeat(lower.noisy, config.lower_ratio, axis=1)[:, : noisy.shape[1]]
            noisy = jnp.concatenate([noisy, raised], axis=-1)
        return backbone(noisy, cond).astype(jnp.float32)

    return parameterisation.velocity(config.objective, config.sigma_data, predict, noisy, angle)


def flops(config: DenoiserConfig, frames: int | None = None) -> int:
    """Floating-point operations of the matrix products in one conditional evaluation of `frames` frames (default L)."""
    frames = config.frames if frames is None else frames
    return 2 * (embedding_macs(config, frames) + config.macs(frames))
