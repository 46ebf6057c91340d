"""Shared by all backbones of the diffusion: the fields of their configs, and the embedding of their conditioning.

A backbone is conditioned on the angle of each frame, the semantic tokens, the prefix and control tokens and, once
distilled, the guidance scale. Without a condition (the null branch of classifier-free guidance) its output does not
depend on the semantic, prefix and control tokens.

Two other conditions are for systems without semantic tokens: the word pieces of a text, in place of the tokens and
without positions in time, and in a cascade the frames of a lower rate, which it refines. The latter are no part of what
guidance leaves out.

Legend: B batch, L latent frames, D latent width, W width, U semantic tokens or word pieces, P prefix levels, N items
with a condition, E width of a word piece.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from melody_jax import roles, sharding
from melody_jax.control_tokens import ControlVocabulary
from melody_jax.errors import UserError
from melody_jax.models.controls import pad_controls
from melody_jax.models.functional import Remat
from melody_jax.models.layers import Linear, RMSNorm
from melody_jax.parameterisation import OBJECTIVES, Objective

SMALL_INIT = nnx.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal")
"""Initialiser of a backbone's last layer: the loss starts at the velocity's variance instead of twice that."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextCondition:
    """The word pieces of a text as a condition: outputs of a text tower (models/text_tower.py)."""

    width: int = 384
    """Channels of a word piece, E."""
    length: int = 64
    """Most word pieces of a text."""

    def __post_init__(self) -> None:
        for name in ("width", "length"):
            if getattr(self, name) < 1:
                raise UserError(f"text: {name} is {getattr(self, name)}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """Inputs and outputs of a backbone. Each backbone has a config with more fields (models/denoiser.py)."""

    latent_dim: int = 16
    """Channels of a latent frame, D."""
    frames: int = 2500
    """Latent frames in a training window, L. The network itself takes any number."""
    frames_per_token: int = 10
    """Latent frames per semantic token."""
    chunks: int = 4
    """Chunks of a training window that have independent angles, M."""
    semantic_tokens: int = 1024
    """Size of the semantic vocabulary; 0, without `text`: there are no tokens to follow."""
    width: int = 768
    """Channels of the embeddings of angle, tokens and prefix, W; also of the trunk, where a network has one."""
    angle_width: int = 256
    """Channels of the two learned vectors that the angle blends."""
    cross_attention: bool = True
    """Attends to the semantic tokens; False: they enter through the pooled condition and `aligned_tokens` only."""
    aligned_tokens: bool = False
    """Adds to every frame the embedding of its semantic token."""
    prefix_conditioning: bool = False
    """Adds an embedding of the MuLan prefix tokens to the pooled condition."""
    prefix_levels: int = 12
    """Prefix tokens, P; further ones are ignored."""
    prefix_codes: int = 1024
    """Codes of one prefix level."""
    prefix_width: int = 64
    """Channels of a prefix token's embedding."""
    text: TextCondition | None = None
    """Word pieces in place of the semantic tokens; None: semantic tokens."""
    lower_ratio: int = 0
    """Frames per frame of a lower rate that this network refines, as in a cascade of diffusions; 0: none."""
    lower_dim: int = 0
    """Channels of a frame of the lower rate; 0: D."""
    lower_noise: float = 0.0
    """Largest angle, radians, of the noise that frames of the lower rate get in training; sampling adds half of it
    (noise conditioning augmentation, arXiv 2106.15282). 0: none, and the network is not told of it."""
    controls: ControlVocabulary | None = None
    """Adds an embedding of control tokens (control_tokens.py) to the pooled condition; None: no control tokens."""
    guidance_range: tuple[float, float] | None = None
    """Smallest and largest guidance scale of a distilled network (training/stages/consistency.py), which has the
    scale as an input, so that one evaluation gives the guided velocity. None: guidance needs a second, unconditional
    evaluation."""
    objective: Objective = "v"
    """What the network predicts: "v", "trigflow" or "rectified_flow"; see parameterisation.py."""
    sigma_data: float = 1.0
    """Standard deviation of the latents, above 0; for "trigflow" only."""
    dtype: str = "float32"
    """Compute type of the trunk; norms, softmax, rotary and diffusion angles stay float32."""
    remat: Remat = "none"
    """What the backward pass recomputes: "none", "dots" or "blocks" (models/functional.py)."""

    def __post_init__(self) -> None:
        if self.guidance_range and not 0 < self.guidance_range[0] <= self.guidance_range[1]:
            raise UserError(f"guidance_range is {self.guidance_range}: both above 0, the smaller one first")
        if self.objective not in OBJECTIVES:
            raise UserError(f"unknown objective {self.objective!r}: expected one of {', '.join(OBJECTIVES)}")
        if not self.sigma_data > 0:
            raise UserError(f"sigma_data is {self.sigma_data}; it must be above 0")
        for name in ("lower_ratio", "lower_dim", "semantic_tokens"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.lower_noise <= math.pi / 2 or (self.lower_noise and not self.lower_ratio):
            raise UserError(
                f"lower_noise is {self.lower_noise}; it must be from 0 to pi/2, and 0 if lower_ratio is 0"
            )
        if not self.has_tokens and (self.cross_attention or self.aligned_tokens):
            raise UserError(
                "semantic_tokens is 0; cross_attention and aligned_tokens need tokens, set them to False"
            )
        if self.text and self.aligned_tokens:
            raise UserError("aligned_tokens is True, but word pieces have no place in time; set it to False")

    @property
    def input_dim(self) -> int:
        """Channels of a backbone's input: latents, and behind them those of a lower rate."""
        return self.latent_dim + ((self.lower_dim or self.latent_dim) if self.lower_ratio else 0)

    @property
    def has_tokens(self) -> bool:
        """Whether there are semantic tokens or word pieces."""
        return bool(self.text or self.semantic_tokens)

    def tokens(self, frames: int) -> int:
        """Number of semantic tokens for this many frames, or of word pieces."""
        if not self.has_tokens:
            return 0
        return self.text.length if self.text else frames // self.frames_per_token

    def macs(self, frames: int) -> int:
        """Multiply-accumulates in the trunk's matrix products for one conditional item of this many frames."""
        raise NotImplementedError


def shared_fields(config: DenoiserConfig) -> dict[str, Any]:
    """The fields that all backbones have: `UNet1DConfig(**shared_fields(dpd.MINI))` copies their values."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(DenoiserConfig)}


class MLP(nnx.Module):
    """RMSNorm(W2 gelu(x W1 + b1) + b2); `gain` initialises the norm's gain."""

    def __init__(self, inputs: int, width: int, dtype: str, gain: float = 1.0, *, rngs: nnx.Rngs) -> None:
        self.hidden = Linear(inputs, width, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, role="row", dtype=dtype, rngs=rngs)
        self.norm = RMSNorm(width, gain, rngs=rngs)

    def __call__(self, x: Float[Array, "*shape inputs"]) -> Float[Array, "*shape width"]:
        """(..., inputs) to (..., width)."""
        return self.norm(self.out(jax.nn.gelu(self.hidden(x))))


class GuidanceEmbedding(nnx.Module):
    """A smooth function of the logarithm of the guidance scale, initialised to zero."""

    WIDTH = 64

    def __init__(self, width: int, dtype: str, *, rngs: nnx.Rngs) -> None:
        # The input is one number of about 1: normal biases spread the hidden units over its range.
        wide = nnx.initializers.normal(1.0)
        self.hidden = Linear(1, self.WIDTH, kernel_init=wide, bias_init=wide, dtype=dtype, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.out = Linear(self.WIDTH, width, role="row", kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, scale: Float[Array, " B"]) -> Float[Array, "B width"]:
        """(B,) scales above 0 to (B, width)."""
        return self.out(jax.nn.gelu(self.hidden(jnp.log(scale)[:, None])))


class WordPieces(NamedTuple):
    """The outputs of a text tower."""

    features: Float[Array, "N U E"]
    mask: Num[Array, "N U"]
    """1 for word pieces, 0 for padding."""


class LowerFrames(NamedTuple):
    """The frames of a lower rate, with noise at an angle of their own (noise conditioning, arXiv 2106.15282)."""

    noisy: Float[Array, "B _ _"]
    """L / `lower_ratio` frames, rounded up, of `lower_dim` channels."""
    angle: Float[Array, " B"]
    """From 0, no noise, to `lower_noise`; unused if that is 0."""


class Conditioning(NamedTuple):
    """The embedded conditioning of a backbone."""

    angles: Float[Array, "B L W"]
    """(B, L, W): each frame's angle, and the guidance scale."""
    pooled: Float[Array, "B W"]
    """(B, W): the mean of the semantic tokens plus the prefix; zero without a condition."""
    aligned: Float[Array, "B L W"] | float
    """(B, L, W): the semantic token of each frame; zero without a condition. 0.0 without `aligned_tokens`."""
    tokens: Float[Array, "N U W"]
    """(N, U, W) token embeddings for cross-attention."""
    has_condition: Bool[Array, " B"] | int
    """(B,) bool, or a Python int N: the first N items have a condition and the others have none."""
    token_mask: Num[Array, "N U"] | None = None
    """Of word pieces: 1, and 0 for padding. They have no positions in time. None: semantic tokens, which have."""

    @property
    def token_positions(self) -> np.ndarray:
        """(U,) centres of the tokens in token units."""
        return np.arange(self.tokens.shape[1]) + 0.5


class Backbone(nnx.Module):
    """Base class of the denoiser networks: `embed` makes the `Conditioning` that `__call__` takes."""

    def __init__(self, config: DenoiserConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width = config.width
        dtype = config.dtype
        self.angle_ends = nnx.Param(
            jax.random.normal(rngs.params(), (2, config.angle_width)), role=roles.WEIGHT
        )
        self.angle = MLP(config.angle_width, width, dtype, rngs=rngs)
        if config.text is None and config.has_tokens:
            self.token_table = nnx.Param(
                jax.random.normal(rngs.params(), (config.semantic_tokens, width)), role=roles.EMBEDDING
            )
        if config.has_tokens:
            self.token = MLP(config.text.width if config.text else width, width, dtype, rngs=rngs)
        if config.aligned_tokens:
            self.aligned = Linear(width, width, use_bias=False, dtype=dtype, rngs=rngs)
        if config.prefix_conditioning:
            rows = config.prefix_levels * config.prefix_codes
            self.prefix_table = nnx.Param(
                jax.random.normal(rngs.params(), (rows, config.prefix_width)), role=roles.EMBEDDING
            )
            self.prefix = MLP(config.prefix_width, width, dtype, rngs=rngs)
        if config.controls:
            rows = sum(config.controls.sizes)
            self.control_table = nnx.Param(
                jax.random.normal(rngs.params(), (rows, config.prefix_width)), role=roles.EMBEDDING
            )
            self.control = MLP(config.prefix_width, width, dtype, rngs=rngs)
        if config.guidance_range:
            self.guidance = GuidanceEmbedding(width, dtype, rngs=rngs)
        if config.lower_noise:
            self.lower_angle_ends = nnx.Param(
                jax.random.normal(rngs.params(), (2, config.angle_width)), role=roles.WEIGHT
            )
            self.lower_angle = MLP(config.angle_width, width, dtype, rngs=rngs)

    def embed(
        self,
        angle: Float[Array, "B L"],
        semantic_tokens: Int[Array, "_ U"] | None,
        has_condition: Bool[Array, " B"] | int,
        prefix_tokens: Int[Array, "_ P"] | None,
        guidance_scale: Float[Array, "..."] | None,
        text: WordPieces | None = None,
        lower: LowerFrames | None = None,
    ) -> Conditioning:
        """Arguments as in `denoiser.velocity`."""
        config = self.config
        batch, frames = angle.shape
        rows = has_condition if isinstance(has_condition, int) else batch
        angles = _embed_angle(angle, self.angle_ends[...], self.angle)
        if config.guidance_range:
            assert guidance_scale is not None, "this network takes the guidance scale as an input"
            angles = angles + self.guidance(jnp.broadcast_to(guidance_scale, (batch,)))[:, None]
        if config.lower_noise:
            assert lower is not None, "this network refines frames of a lower rate"
            angles = angles + _embed_angle(lower.angle[:, None], self.lower_angle_ends[...], self.lower_angle)
        tokens, pooled, mask = self._embed_tokens(rows, semantic_tokens, text)
        if config.prefix_conditioning:
            pooled = pooled + self._embed_prefix(rows, prefix_tokens)
        if config.controls:
            pooled = pooled + self._embed_controls(rows, config.controls.sizes, prefix_tokens)
        aligned = 0.0
        if config.aligned_tokens:
            token_of_frame = np.minimum(np.arange(frames) // config.frames_per_token, tokens.shape[1] - 1)
            aligned = _without_condition_zero(self.aligned(tokens)[:, token_of_frame], has_condition, batch)
        pooled = _without_condition_zero(pooled, has_condition, batch)
        return Conditioning(angles, pooled, aligned, tokens, has_condition, mask)

    def _embed_tokens(
        self, rows: int, semantic_tokens: Array | None, text: WordPieces | None
    ) -> tuple[Array, Array, Array | None]:
        """The embeddings of semantic tokens or word pieces, their mean, and the mask of the latter."""
        if not self.config.has_tokens:
            width = self.config.width
            return jnp.zeros((rows, 0, width)), jnp.zeros((rows, width)), None
        if self.config.text is None:
            assert semantic_tokens is not None, "this network needs semantic tokens"
            table = sharding.embed_lookup(self.token_table[...], semantic_tokens[:rows])
            tokens = sharding.constrain_batch(self.token(table))
            return tokens, tokens.mean(axis=1), None
        assert text is not None, "this network needs the word pieces of a text"
        tokens = sharding.constrain_batch(self.token(text.features[:rows]))
        mask = text.mask[:rows].astype(tokens.dtype)
        total = (tokens * mask[..., None]).sum(axis=1)
        return tokens, total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1), mask

    def _embed_prefix(self, rows: int, prefix_tokens: Array | None) -> Array:
        config = self.config
        if prefix_tokens is None:
            prefix_tokens = jnp.full((rows, config.prefix_levels), -1)
        codes = prefix_tokens[:rows, : config.prefix_levels]
        present = (codes >= 0)[..., None]
        entries = jnp.maximum(codes, 0) + np.arange(config.prefix_levels) * config.prefix_codes
        total = jnp.where(present, sharding.embed_lookup(self.prefix_table[...], entries), 0.0).sum(axis=1)
        return self.prefix(total / jnp.maximum(present.sum(axis=1), 1))

    def _embed_controls(self, rows: int, sizes: tuple[int, ...], prefix_tokens: Array | None) -> Array:
        levels = self.config.prefix_levels
        if prefix_tokens is None:
            prefix_tokens = jnp.full((rows, levels), -1)
        tokens = pad_controls(prefix_tokens[:rows], levels + len(sizes))[:, levels:]
        present = (tokens >= 0)[..., None]
        entries = jnp.maximum(tokens, 0) + np.cumsum((0, *sizes[:-1]))
        embedded = sharding.embed_lookup(self.control_table[...], entries)
        return self.control(jnp.where(present, embedded, 0.0).sum(axis=1))


def _embed_angle(angle: Array, ends: Array, network: MLP) -> Array:
    start, end = ends
    angle = angle.astype(jnp.float32)[..., None]
    blend = jnp.cos(angle) * start + jnp.sin(angle) * end
    return sharding.constrain_batch(network(sharding.constrain_batch(blend)))


def _without_condition_zero(x: Array, has_condition: Array | int, batch: int) -> Array:
    """(N, ...) or (B, ...) to (B, ...): zeros for the items without a condition."""
    if isinstance(has_condition, int):
        return jnp.pad(x, ((0, batch - has_condition), *[(0, 0)] * (x.ndim - 1)))
    return x * has_condition.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)


def embedding_macs(config: DenoiserConfig, frames: int) -> int:
    """Multiply-accumulates in the matrix products of `Backbone.embed` for one conditional item."""
    width = config.width
    tokens = config.tokens(frames)
    token_width = config.text.width if config.text else width
    total = frames * width * (config.angle_width + width) + tokens * width * (token_width + width)
    total += width * (config.angle_width + width) if config.lower_noise else 0
    total += tokens * width * width if config.aligned_tokens else 0
    total += width * (config.prefix_width + width) * (config.prefix_conditioning + bool(config.controls))
    return total + (GuidanceEmbedding.WIDTH * (1 + width) if config.guidance_range else 0)
