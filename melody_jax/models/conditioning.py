"""What all backbones of the diffusion share: the fields of their configs, and how they embed what they are told.

A backbone is told the angle of each frame, the semantic tokens, the prefix tokens and, once distilled, the guidance
scale. Without a condition (the null branch of classifier-free guidance) nothing of the tokens or the prefix is left.

Legend: B batch, L latent frames, W width, U semantic tokens, P prefix levels, n items with a condition.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from melody_jax import roles, sharding
from melody_jax.errors import UserError
from melody_jax.models.functional import Remat
from melody_jax.models.layers import Linear, RMSNorm
from melody_jax.parameterisation import OBJECTIVES, Objective

SMALL_INIT = nnx.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal")
"""Of a backbone's last layer: the loss starts at the velocity's variance and not at twice that."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """What a backbone takes and gives; each has a config of its own with more fields (models/denoiser.py)."""

    latent_dim: int = 16
    """Channels of a latent frame, D."""
    frames: int = 2500
    """Latent frames in a training window, L. The network itself takes any number."""
    frames_per_token: int = 10
    """Latent frames for one semantic token: the clock that both sides share."""
    chunks: int = 4
    """Chunks of a window that have angles of their own in training, M."""
    semantic_tokens: int = 1024
    """Size of the semantic vocabulary."""
    width: int = 768
    """Channels of the embeddings of angle, tokens and prefix, W; where a network has a trunk, of that too."""
    angle_width: int = 256
    """Channels of the two learned ends that the angle blends."""
    literal_sin: bool = False
    """Blends the angle's two ends by sin and sin, as printed, instead of cos and sin."""
    cross_attention: bool = True
    """Attends to the semantic tokens; False: they are heard in the pooled condition and `aligned_tokens` only."""
    aligned_tokens: bool = False
    """Tells every frame the embedding of the token that sounds there."""
    prefix_conditioning: bool = False
    """Adds an embedding of the MuLan prefix tokens to the pooled condition."""
    prefix_levels: int = 12
    """Prefix tokens, P; fewer than are given: the first ones."""
    prefix_codes: int = 1024
    """Codes of one prefix level."""
    prefix_width: int = 64
    """Channels of a prefix token's embedding."""
    guidance_range: tuple[float, float] | None = None
    """Least and largest guidance scale that a distilled network (training/stages/consistency.py) takes as an input: one
    pass gives the guided velocity. None: not an input; guidance needs a second pass without the condition."""
    objective: Objective = "v"
    """What the network predicts: "v", "trigflow" or "rectified_flow"; see parameterisation.py."""
    sigma_data: float = 1.0
    """Standard deviation of the latents, above 0; for "trigflow" alone."""
    dtype: str = "float32"
    """Compute type of the trunk; norms, softmax, rotary and diffusion angles stay float32."""
    remat: Remat = "none"
    """What the backward pass computes again: "none", "dots" or "blocks" (models/functional.py)."""

    def __post_init__(self) -> None:
        if self.guidance_range and not 0 < self.guidance_range[0] <= self.guidance_range[1]:
            raise UserError(f"guidance_range is {self.guidance_range}: both above 0, the smaller one first")
        if self.objective not in OBJECTIVES:
            raise UserError(f"unknown objective {self.objective!r}: expected one of {', '.join(OBJECTIVES)}")
        if not self.sigma_data > 0:
            raise UserError(f"sigma_data is {self.sigma_data}; it must be above 0")

    def tokens(self, frames: int) -> int:
        """Semantic tokens that go with so many frames."""
        return frames // self.frames_per_token

    def products(self, frames: int) -> int:
        """Multiplications in the trunk's matrix products for one item of so many frames, with a condition."""
        raise NotImplementedError


def shared_fields(config: DenoiserConfig) -> dict[str, Any]:
    """The values of the fields that all backbones have: `UNet1DConfig(**shared_fields(dpd.MINI))` has them too."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(DenoiserConfig)}


class MLP(nnx.Module):
    """RMSNorm(W2 gelu(x W1 + b1) + b2); `gain` is the norm's at first."""

    def __init__(self, inputs: int, width: int, dtype: str, gain: float = 1.0, *, rngs: nnx.Rngs) -> None:
        self.hidden = Linear(inputs, width, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, role="row", dtype=dtype, rngs=rngs)
        self.norm = RMSNorm(width, gain, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., inputs) to (..., width)."""
        return self.norm(self.out(jax.nn.gelu(self.hidden(x))))


class GuidanceEmbedding(nnx.Module):
    """A smooth function of the logarithm of the guidance scale that is zero at first."""

    WIDTH = 64

    def __init__(self, width: int, dtype: str, *, rngs: nnx.Rngs) -> None:
        wide = nnx.initializers.normal(
            1.0
        )  # the input is one number of about 1, the bias puts the bends along it
        self.hidden = Linear(1, self.WIDTH, kernel_init=wide, bias_init=wide, dtype=dtype, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.out = Linear(self.WIDTH, width, role="row", kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, scale: jax.Array) -> jax.Array:
        """(B,) scales above 0 to (B, width)."""
        return self.out(jax.nn.gelu(self.hidden(jnp.log(scale)[:, None])))


class Conditions(NamedTuple):
    """What a backbone is told, embedded."""

    angles: jax.Array
    """(B, L, W): each frame's angle, and the guidance scale."""
    pooled: jax.Array
    """(B, W): the mean of the tokens and the prefix; zero without a condition."""
    aligned: jax.Array | float
    """(B, L, W): the token that sounds at each frame; zero without a condition. 0.0 without `aligned_tokens`."""
    tokens: jax.Array
    """(n, U, W), for cross-attention."""
    conditioned: jax.Array | int
    """(B,) bool, or the number n of first items that have a condition."""

    @property
    def clock(self) -> np.ndarray:
        """(U,) the tokens' times in token units."""
        return np.arange(self.tokens.shape[1]) + 0.5


class Conditioned(nnx.Module):
    """A network with the embeddings of what it is told; `embed` makes `Conditions` of it."""

    def __init__(self, config: DenoiserConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width, dtype = config.width, config.dtype
        self.angle_ends = nnx.Param(
            jax.random.normal(rngs.params(), (2, config.angle_width)), role=roles.WEIGHT
        )
        self.angle = MLP(config.angle_width, width, dtype, rngs=rngs)
        self.token_table = nnx.Param(
            jax.random.normal(rngs.params(), (config.semantic_tokens, width)), role=roles.EMBEDDING
        )
        self.token = MLP(width, width, dtype, rngs=rngs)
        if config.aligned_tokens:
            self.aligned = Linear(width, width, use_bias=False, dtype=dtype, rngs=rngs)
        if config.prefix_conditioning:
            rows = config.prefix_levels * config.prefix_codes
            self.prefix_table = nnx.Param(
                jax.random.normal(rngs.params(), (rows, config.prefix_width)), role=roles.EMBEDDING
            )
            self.prefix = MLP(config.prefix_width, width, dtype, rngs=rngs)
        if config.guidance_range:
            self.guidance = GuidanceEmbedding(width, dtype, rngs=rngs)

    def embed(
        self,
        angle: jax.Array,
        semantic_tokens: jax.Array,
        conditioned: jax.Array | int,
        prefix_tokens: jax.Array | None,
        guidance_scale: jax.Array | None,
    ) -> Conditions:
        """Arguments as those of `denoiser.velocity`."""
        config = self.config
        batch, frames = angle.shape
        rows = conditioned if isinstance(conditioned, int) else batch

        def spread(x: jax.Array) -> jax.Array:
            """Zeros for the items without a condition."""
            if isinstance(conditioned, int):
                return jnp.pad(x, ((0, batch - rows), *[(0, 0)] * (x.ndim - 1)))
            return x * conditioned.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)

        angles = self._embed_angle(angle)
        if config.guidance_range:
            assert guidance_scale is not None, "this network takes the guidance scale as an input"
            angles = angles + self.guidance(jnp.broadcast_to(guidance_scale, (batch,)))[:, None]
        tokens = sharding.constrain_batch(
            self.token(sharding.embed_lookup(self.token_table[...], semantic_tokens[:rows]))
        )
        pooled = tokens.mean(axis=1)
        if config.prefix_conditioning:
            pooled = pooled + self._embed_prefix(rows, prefix_tokens)
        aligned = 0.0
        if config.aligned_tokens:
            sounding = np.minimum(np.arange(frames) // config.frames_per_token, tokens.shape[1] - 1)
            aligned = spread(self.aligned(tokens)[:, sounding])
        return Conditions(angles, spread(pooled), aligned, tokens, conditioned)

    def _embed_angle(self, angle: jax.Array) -> jax.Array:
        start, end = self.angle_ends[...]
        angle = angle.astype(jnp.float32)[..., None]
        first = jnp.sin(angle) if self.config.literal_sin else jnp.cos(angle)
        return sharding.constrain_batch(
            self.angle(sharding.constrain_batch(first * start + jnp.sin(angle) * end))
        )

    def _embed_prefix(self, rows: int, prefix_tokens: jax.Array | None) -> jax.Array:
        config = self.config
        if prefix_tokens is None:
            prefix_tokens = jnp.full((rows, config.prefix_levels), -1)
        codes = prefix_tokens[:rows, : config.prefix_levels]
        present = (codes >= 0)[..., None]
        entries = jnp.maximum(codes, 0) + np.arange(config.prefix_levels) * config.prefix_codes
        total = jnp.where(present, sharding.embed_lookup(self.prefix_table[...], entries), 0.0).sum(axis=1)
        return self.prefix(total / jnp.maximum(present.sum(axis=1), 1))


def embedding_products(config: DenoiserConfig, frames: int) -> int:
    """Multiplications in the matrix products of `Conditioned.embed` for one item with a condition."""
    width, tokens = config.width, config.tokens(frames)
    total = frames * width * (config.angle_width + width) + tokens * 2 * width * width
    total += tokens * width * width if config.aligned_tokens else 0
    total += width * (config.prefix_width + width) if config.prefix_conditioning else 0
    return total + (GuidanceEmbedding.WIDTH * (1 + width) if config.guidance_range else 0)
