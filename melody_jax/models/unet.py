"""The U-Nets' common parts, over one axis (time) or two (time and latent channels): blocks, resampling, forward pass.

    x = conv(noisy)
    down, per level:   residual blocks, attention; output kept as a skip; every axis halved
    up, per level:     every axis doubled; skip concatenated; residual blocks, attention
    velocity = conv(silu(norm(x)))

A residual block is norm, SiLU, convolution, norm, modulation, SiLU, convolution, and is initialised to the identity.
Each frame is modulated by its own angle, the pooled condition and, with `aligned_tokens`, its semantic token; between
levels the modulation is averaged over pairs of frames. Norms act within one frame, so a frame's output does not depend
on the length of the window. An odd length is halved upwards and cut again after doubling: any number of frames works.
Attention, at the lowest `attention_levels`, is along the level's positions, then to the tokens, with positions in token
units; without a condition it attends to the positions themselves, as in DPD.

Legend: B batch, L frames of a level, F rows (of an image), C channels, W width of the embeddings, U semantic tokens.
Arrays are (B, L, C) or (B, L, F, C).
"""

import dataclasses
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from melody_jax import roles, sharding
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.conditioning import SMALL_INIT, Backbone, Conditioning, DenoiserConfig
from melody_jax.models.layers import Linear
from melody_jax.models.products import product
from melody_jax.models.roformer import Attention, FeedForward

TAPS = 3
"""Size of every convolution kernel along each axis."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig(DenoiserConfig):
    """Shape of a U-Net over any number of axes."""

    channels: tuple[int, ...]
    """Channels of each level, the finest first; each further level halves the axes."""
    residual_blocks: int
    """Residual blocks per level, on the way down and again on the way up."""
    attention_levels: int
    """Number of levels with attention, the coarsest ones."""
    head_width: int
    """Channels of an attention head, even."""
    feed_forward: int = 4
    """Width of a feed-forward layer as a multiple of a level's channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.channels or min(self.channels) < 1 or self.residual_blocks < 1:
            raise UserError(
                f"channels {self.channels}, residual_blocks {self.residual_blocks}: at least one of each"
            )
        if not 0 <= self.attention_levels <= len(self.channels):
            raise UserError(
                f"attention_levels is {self.attention_levels}; there are {len(self.channels)} levels"
            )
        for channels in self.channels[len(self.channels) - self.attention_levels :]:
            if self.head_width < 2 or self.head_width % 2 or channels % self.head_width:
                raise UserError(
                    f"head_width {self.head_width} for {channels} channels: it must be even and divide those of every "
                    "level with attention"
                )

    def attends(self, level: int) -> bool:
        """Whether the level, 0 the finest, has attention."""
        return level >= len(self.channels) - self.attention_levels


class FrameNorm(nnx.Module):
    """Root-mean-square norm of each frame, over its rows and channels, with a learned gain per channel."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(jnp.ones(channels), role=roles.NORM)

    def __call__(self, x: Float[Array, "B L *F C"]) -> Float[Array, "B L *F C"]:
        """(B, L, ..., C) to the same shape and type."""
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=tuple(range(2, x.ndim)), keepdims=True) + 1e-6)
        return (h * self.scale[...]).astype(x.dtype)


class PatchConv(nnx.Module):
    """'Same' convolution over all axes but the first and the last, as patches times a matrix.

    models/discriminators.py says why it does not use `lax.conv`.
    """

    def __init__(
        self,
        axes: int,
        inputs: int,
        outputs: int,
        dtype: str,
        init: Initializer | None = None,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = dtype
        init = init or nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (*[TAPS] * axes, inputs, outputs)), role=roles.CONV)
        self.bias = nnx.Param(jnp.zeros(outputs), role=roles.BIAS)

    def __call__(self, x: Float[Array, "B L *F C"], stride: int = 1) -> Float[Array, "B ..."]:
        """(B, L, ..., C) to (B, ceil(L / stride), ..., C')."""
        kernel = self.kernel[...].astype(self.dtype)
        *taps, _, outputs = kernel.shape
        x = x.astype(self.dtype)
        padded = jnp.pad(x, ((0, 0), *[(TAPS // 2, TAPS // 2) for _ in taps], (0, 0)))
        patches = []
        for shift in itertools.product(range(TAPS), repeat=len(taps)):
            pairs = zip(shift, x.shape[1:-1], strict=True)
            window = tuple(slice(first, first + size, stride) for first, size in pairs)
            patches.append(padded[:, *window])
        bias = self.bias[...].astype(self.dtype)
        return product(jnp.concatenate(patches, axis=-1), kernel.reshape(-1, outputs)) + bias


class ResidualBlock(nnx.Module):
    """Two convolutions, modulated frame by frame."""

    def __init__(self, axes: int, inputs: int, outputs: int, config: UNetConfig, *, rngs: nnx.Rngs) -> None:
        dtype = config.dtype
        zeros = nnx.initializers.zeros
        self.norm_in = FrameNorm(inputs, rngs=rngs)
        self.conv_in = PatchConv(axes, inputs, outputs, dtype, rngs=rngs)
        self.modulation = Linear(config.width, 2 * outputs, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.norm_out = FrameNorm(outputs, rngs=rngs)
        self.conv_out = PatchConv(axes, outputs, outputs, dtype, zeros, rngs=rngs)
        if inputs != outputs:
            self.shortcut = Linear(inputs, outputs, use_bias=False, dtype=dtype, rngs=rngs)
        self.projects = inputs != outputs

    def __call__(
        self, x: Float[Array, "B L *F C"], modulation: Float[Array, "B L W"]
    ) -> Float[Array, "B L *F _"]:
        """(B, L, ..., C) to (B, L, ..., C'); modulation (B, L, W)."""
        h = self.norm_out(self.conv_in(jax.nn.silu(self.norm_in(x))))
        affine = self.modulation(modulation)
        affine = affine.reshape(*affine.shape[:2], *[1] * (x.ndim - 3), -1)
        scale, shift = jnp.split(affine, 2, axis=-1)
        h = self.conv_out(jax.nn.silu(h * (1 + scale) + shift))
        return (self.shortcut(x) if self.projects else x) + h


class AttentionBlock(nnx.Module):
    """Attention along all positions of a level and to the tokens, and a feed-forward layer."""

    def __init__(self, channels: int, config: UNetConfig, *, rngs: nnx.Rngs) -> None:
        heads = channels // config.head_width
        dtype = config.dtype
        self.own = Attention(channels, heads, dtype, rngs=rngs)
        self.own_feed = FeedForward(channels, config.feed_forward, dtype, rngs=rngs)
        self.attends_to_tokens = config.cross_attention
        if config.cross_attention:
            self.tokens = Linear(config.width, channels, use_bias=False, dtype=dtype, rngs=rngs)
            self.cross = Attention(channels, heads, dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B L *F C"], positions: np.ndarray, cond: Conditioning
    ) -> Float[Array, "B L *F C"]:
        """(B, L, ..., C) to the same; positions (L,) in token units."""
        positions = np.repeat(positions, math.prod(x.shape[2:-1]))
        rows = self.own.self_attend(x.reshape(1, x.shape[0], -1, x.shape[-1]), positions)
        if self.attends_to_tokens:
            projected = cond._replace(tokens=self.tokens(cond.tokens))
            rows = self.cross.cross_attend(rows, projected, positions[None], positions)
        return self.own_feed(rows).reshape(x.shape)


class Level(nnx.Module):
    """One pass through one level: residual blocks, and attention if the level has any."""

    def __init__(self, axes: int, inputs: int, level: int, config: UNetConfig, *, rngs: nnx.Rngs) -> None:
        channels = config.channels[level]
        widths = [inputs, *[channels] * (config.residual_blocks - 1)]
        self.residual = nnx.List(
            [ResidualBlock(axes, width, channels, config, rngs=rngs) for width in widths]
        )
        self.attends = config.attends(level)
        if self.attends:
            self.attention = AttentionBlock(channels, config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L *F C"],
        modulation: Float[Array, "B L W"],
        positions: np.ndarray,
        cond: Conditioning,
    ) -> Float[Array, "B L *F _"]:
        """(B, L, ..., C) to (B, L, ..., C')."""
        x = sharding.constrain_batch(x)
        for block in self.residual:
            x = block(x, modulation)
        return self.attention(x, positions, cond) if self.attends else x


class UNet(Backbone):
    """A U-Net over `axes` axes with `width_in` input and `width_out` output channels."""

    config: UNetConfig

    def __init__(
        self, config: UNetConfig, axes: int, width_in: int, width_out: int, *, rngs: nnx.Rngs
    ) -> None:
        super().__init__(config, rngs=rngs)
        channels = config.channels
        dtype = config.dtype
        coarsest = len(channels) - 1
        self.inputs = PatchConv(axes, width_in, channels[0], dtype, rngs=rngs)
        self.falling = nnx.List(
            [Level(axes, channels[max(i - 1, 0)], i, config, rngs=rngs) for i in range(len(channels))]
        )
        self.rising = nnx.List(
            [
                Level(axes, c * (1 if i == coarsest else 2), i, config, rngs=rngs)
                for i, c in enumerate(channels)
            ]
        )
        self.halve = nnx.List([PatchConv(axes, c, c, dtype, rngs=rngs) for c in channels[:-1]])
        self.double = nnx.List(
            [PatchConv(axes, coarse, fine, dtype, rngs=rngs) for fine, coarse in itertools.pairwise(channels)]
        )
        self.output_norm = FrameNorm(channels[0], rngs=rngs)
        self.outputs = PatchConv(axes, channels[0], width_out, dtype, SMALL_INIT, rngs=rngs)

    def forward(self, x: Float[Array, "B L *F _"], cond: Conditioning) -> Float[Array, "B L *F _"]:
        """(B, L, ..., width_in) to (B, L, ..., width_out)."""
        levels = range(len(self.config.channels))
        modulations = [sharding.constrain_batch(cond.angles + cond.pooled[:, None] + cond.aligned)]
        for _ in levels[1:]:
            modulations.append(_average_pairs(modulations[-1]))
        positions = [
            (np.arange(m.shape[1]) + 0.5) * 2**i / self.config.frames_per_token
            for i, m in enumerate(modulations)
        ]

        def apply(level: Level, i: int, x: Array) -> Array:
            block = partial(level, positions=positions[i], cond=cond)
            return functional.rematerialised(block, self.config.remat)(x, modulations[i])

        x = self.inputs(x)
        skips = []
        for i in levels:
            x = apply(self.falling[i], i, self.halve[i - 1](x, stride=2) if i else x)
            skips.append(x)
        x = apply(self.rising[-1], levels[-1], x)
        for i in reversed(levels[:-1]):
            x = self.double[i](_upsample(x, skips[i].shape))
            x = apply(self.rising[i], i, jnp.concatenate([x, skips[i]], axis=-1))
        return self.outputs(jax.nn.silu(self.output_norm(x)))


def _average_pairs(x: Array) -> Array:
    """(B, L, W) to (B, ceil(L / 2), W): means of pairs of frames; an unpaired last frame stays."""
    x = jnp.concatenate([x, x[:, -1:]], axis=1) if x.shape[1] % 2 else x
    return x.reshape(x.shape[0], -1, 2, x.shape[-1]).mean(axis=2)


def _upsample(x: Array, shape: tuple[int, ...]) -> Array:
    """Every position twice along all axes but the first and the last, cut to `shape`."""
    for axis in range(1, x.ndim - 1):
        x = jax.lax.slice_in_dim(jnp.repeat(x, 2, axis=axis), 0, shape[axis], axis=axis)
    return x


def macs(config: UNetConfig, shape: tuple[int, ...], width_in: int, width_out: int) -> int:
    """Multiply-accumulates in the matrix products of `UNet.forward` for one conditional item (*shape, width_in)."""
    tokens = config.tokens(shape[0])
    taps = TAPS ** len(shape)
    channels = config.channels
    shapes = [tuple(-(-size // 2**i) for size in shape) for i in range(len(channels))]
    positions = [math.prod(level) for level in shapes]

    def level_macs(i: int, inputs: int) -> int:
        """One pass through level i."""
        c = channels[i]
        total = 0
        for width in (inputs, *[c] * (config.residual_blocks - 1)):
            total += positions[i] * (taps * (width + c) * c + (width * c if width != c else 0))
            total += shapes[i][0] * config.width * 2 * c
        if config.attends(i):
            total += positions[i] * (4 + 2 * config.feed_forward) * c * c + 2 * c * positions[i] ** 2
            if config.cross_attention:
                total += positions[i] * (2 * c * c + 2 * c * tokens) + tokens * (config.width * c + 2 * c * c)
        return total

    total = positions[0] * taps * (width_in + width_out) * channels[0]
    for i, c in enumerate(channels):
        is_coarsest = i == len(channels) - 1
        total += level_macs(i, channels[max(i - 1, 0)]) + level_macs(i, c if is_coarsest else 2 * c)
        total += 0 if is_coarsest else taps * (positions[i + 1] * c * c + positions[i] * channels[i + 1] * c)
    return total
