"""The wav2vec 2.0 family: strided convolutions over the waveform, transformer or Conformer blocks (arXiv 2006.11477).

The paper's semantic tokenizer (MeLoDy, arXiv 2305.15719, section 5.1) is a Wav2Vec2-Conformer (arXiv 2005.08100) with
rotary positions; MERT and HuBERT have transformer blocks and a convolution for positions. The blocks follow the
published code, so that published weights fit: LayerNorms, rotary positions *before* the query and key projections, and
an affine map in the Conformer's convolution in place of the batch norm, which is affine at inference.

B batch, T samples at 24 kHz, N samples at the network's rate, L frames, U tokens, D width, C convolution channels.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from melody_jax import spectral
from melody_jax.audio_format import TOKEN_SAMPLES
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.bert_block import Block, BlockConfig, layer_norm, linear
from melody_jax.models.functional import Params, Remat, make_rngs
from melody_jax.models.layers import Linear, merge_heads, rotary, split_heads
from melody_jax.models.platform import attend, depthwise_conv
from melody_jax.roles import BIAS, CONV, NORM, WEIGHT

EPSILON = 1e-5
gelu = partial(jax.nn.gelu, approximate=False)
ACTIVATIONS = {"gelu": gelu, "swish": jax.nn.silu}


@dataclass(frozen=True, kw_only=True)
class Wav2Vec2Config:
    """Shape of the encoder. The defaults follow what is published about the paper's tokenizer."""

    resample: tuple[int, int] = (2, 3)
    """The network's sample rate over 24 kHz; (2, 3) is 16 kHz."""
    channels: int = 512
    """Channels C of the convolutions."""
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Taps of each convolution."""
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    """Strides of the convolutions; their product is 320 samples: 50 Hz at 16 kHz."""
    channel_norm: bool = True
    """A LayerNorm after every convolution, which then has a bias; otherwise one norm over time after the first."""
    conformer: bool = True
    """Conformer blocks with rotary positions; otherwise transformer blocks and a convolution for positions."""
    layers: int = 14
    """Blocks."""
    width: int = 768
    """Channels D."""
    heads: int = 12
    """Attention heads."""
    ffn: int = 3072
    """Hidden channels of the feed-forward layers."""
    kernel: int = 31
    """Taps of a Conformer's depthwise convolution, odd."""
    activation: str = "swish"
    """Activation of the Conformer's feed-forward layers and convolution: "swish" or "gelu"."""
    position_kernel: int = 128
    """Taps of the transformer's convolution for positions."""
    position_groups: int = 16
    """Groups of that convolution."""
    pool: int = 2
    """Frames averaged per token: 2 at 50 Hz and 3 at MERT's 75 Hz give 25 Hz."""
    layer: int = 7
    """The features are the activations after this many blocks, 0 to `layers`."""
    dtype: str = "float32"
    """Compute dtype of the blocks' matrix products; norms and softmax are float32."""
    remat: Remat = "none"
    """What the backward pass recomputes: "none", "dots" or "blocks" (models/functional.py)."""

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise UserError(f"width {self.width} must be a multiple of twice the {self.heads} heads")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"activation {self.activation!r}: it must be one of {', '.join(ACTIVATIONS)}")
        if not 0 <= self.layer <= self.layers:
            raise UserError(f"layer {self.layer} must lie in 0 to {self.layers}")
        if len(self.kernels) != len(self.strides):
            raise UserError(f"{len(self.kernels)} kernels for {len(self.strides)} strides")

    @property
    def block(self) -> BlockConfig:
        """Shape of a transformer block."""
        return BlockConfig(
            width=self.width, heads=self.heads, ffn=self.ffn, epsilon=EPSILON, dtype=self.dtype
        )


MERT_95M = Wav2Vec2Config(resample=(1, 1), channel_norm=False, conformer=False, layers=12, pool=3)
"""MERT-v1-95M: HuBERT-base's shape at 24 kHz, 75 Hz. Its weights are CC-BY-NC-4.0."""

ROPE_LARGE = Wav2Vec2Config(layers=24, width=1024, heads=16, ffn=4096, layer=12)
"""facebook/wav2vec2-conformer-rope-large (Apache-2.0), larger than the paper's."""


class FeedForward(nnx.Module):
    """Pre-norm two-layer network without the residual."""

    def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs) -> None:
        self.activation = ACTIVATIONS[config.activation]
        self.norm = layer_norm(config.width, EPSILON, rngs=rngs)
        self.up = linear(config.width, config.ffn, config.dtype, rngs=rngs)
        self.down = linear(config.ffn, config.width, config.dtype, role="row", rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """The residual update."""
        return self.down(self.activation(self.up(self.norm(x))))


class Convolution(nnx.Module):
    """The Conformer's convolution module without the residual."""

    def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs) -> None:
        width = config.width
        self.activation = ACTIVATIONS[config.activation]
        self.norm = layer_norm(width, EPSILON, rngs=rngs)
        self.gate = linear(width, 2 * width, config.dtype, bias=False, lora=False, rngs=rngs)
        depthwise = jax.random.normal(rngs.params(), (config.kernel, width)) * config.kernel**-0.5
        self.depthwise = nnx.Param(depthwise, role=WEIGHT)
        self.scale = nnx.Param(jnp.ones(width), role=NORM)
        self.bias = nnx.Param(jnp.zeros(width), role=BIAS)
        self.out = linear(width, width, config.dtype, bias=False, role="row", lora=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """The residual update."""
        value, gate = jnp.split(self.gate(self.norm(x)), 2, axis=-1)
        h = depthwise_conv(value * jax.nn.sigmoid(gate), self.depthwise[...])
        return self.out(self.activation(h * self.scale[...].astype(h.dtype) + self.bias[...].astype(h.dtype)))


class ConformerBlock(nnx.Module):
    """Half a feed-forward layer, attention, convolution, half a feed-forward layer, norm."""

    def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs) -> None:
        self.heads = config.heads
        self.before = FeedForward(config, rngs=rngs)
        self.attention_norm = layer_norm(config.width, EPSILON, rngs=rngs)
        self.query_key = linear(config.width, 2 * config.width, config.dtype, rngs=rngs)
        self.value = linear(config.width, config.width, config.dtype, rngs=rngs)
        self.attention_out = linear(config.width, config.width, config.dtype, role="row", rngs=rngs)
        self.convolution = Convolution(config, rngs=rngs)
        self.after = FeedForward(config, rngs=rngs)
        self.norm = layer_norm(config.width, EPSILON, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], positions: Int[Array, " L"]) -> Float[Array, "B L D"]:
        """One block; `positions` are in frames."""
        x = x + 0.5 * self.before(x)
        h = self.attention_norm(x)
        rotated = merge_heads(rotary(split_heads(h, self.heads), positions))
        q, k = jnp.split(self.query_key(rotated), 2, axis=-1)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, self.value(h)))
        x = x + self.attention_out(merge_heads(attend(q, k, v)))
        x = x + self.convolution(x)
        return self.norm(x + 0.5 * self.after(x))


class StridedConvolution(nnx.Module):
    """Convolution `i` without padding, with its norm and a GELU."""

    def __init__(self, config: Wav2Vec2Config, i: int, *, key: jax.Array) -> None:
        inputs = config.channels if i else 1
        taps = config.kernels[i]
        self.stride = config.strides[i]
        self.is_first = i == 0
        self.channel_norm = config.channel_norm
        kernel = jax.random.normal(key, (taps, inputs, config.channels))
        self.kernel = nnx.Param(kernel * (2 / (taps * inputs)) ** 0.5, role=CONV)
        if config.channel_norm:
            self.bias = nnx.Param(jnp.zeros(config.channels), role=BIAS)
        if config.channel_norm or i == 0:
            self.norm = layer_norm(config.channels, EPSILON, rngs=make_rngs(key))

    def __call__(self, x: Float[Array, "B ..."]) -> Float[Array, "B L C"]:
        """A waveform (B, N) for the first convolution, (B, L', C) for the others."""
        kernel = self.kernel[...]
        if self.is_first:  # one input channel: frames times a matrix
            x = spectral.frame(x, len(kernel), self.stride, center=False) @ kernel[:, 0]
        else:
            x = jax.lax.conv_general_dilated(
                x, kernel, (self.stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
            )
        if self.channel_norm:
            x = self.norm(x + self.bias[...])
        elif self.is_first:
            x = x - x.mean(axis=1, keepdims=True)
            x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + EPSILON)
            assert self.norm.scale is not None
            assert self.norm.bias is not None
            x = x * self.norm.scale[...] + self.norm.bias[...]
        return gelu(x)


class PositionConvolution(nnx.Module):
    """A grouped convolution whose output is added as the positions of a transformer."""

    def __init__(self, config: Wav2Vec2Config, *, key: jax.Array) -> None:
        shape = (config.position_kernel, config.width // config.position_groups, config.width)
        self.groups = config.position_groups
        scale = 2.0 * (config.position_kernel * config.width) ** -0.5
        self.kernel = nnx.Param(scale * jax.random.normal(key, shape), role=CONV)
        self.bias = nnx.Param(jnp.zeros(config.width), role=BIAS)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """What is added to the activations."""
        kernel = self.kernel[...]
        half = len(kernel) // 2
        is_even = 1 - len(kernel) % 2
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (1,),
            ((half, half - is_even),),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
        )
        return gelu(x + self.bias[...])


class Wav2Vec2(nnx.Module):
    """The network."""

    def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs) -> None:
        width = config.width
        conv_key, input_key, position_key, block_key = functional.split_key(rngs, 4)
        self.encoder_config = config
        self.convolutions = nnx.List(
            StridedConvolution(config, i, key=jax.random.fold_in(conv_key, i))
            for i in range(len(config.kernels))
        )
        self.input_norm = layer_norm(config.channels, EPSILON, rngs=rngs)
        self.input = Linear(config.channels, width, rngs=make_rngs(input_key))
        if config.conformer:
            self.blocks = functional.stack(ConformerBlock, config, depth=config.layers, key=block_key)
        else:
            self.position = PositionConvolution(config, key=position_key)
            self.norm = layer_norm(width, EPSILON, rngs=rngs)
            self.blocks = functional.stack(Block, config.block, depth=config.layers, key=block_key)

    def convolve(self, wave: Float[Array, "B N"]) -> Float[Array, "B L C"]:
        """The strided convolutions, float32."""
        x = wave
        for convolution in self.convolutions:
            x = convolution(x)
        return x

    def hidden(self, wave: Float[Array, "B N"], layer: int) -> Float[Array, "B L D"]:
        """Activations after `layer` blocks of the result of `waveform`, at the unpooled rate."""
        config = self.encoder_config
        x = self.input(self.input_norm(self.convolve(wave)))
        if config.conformer:
            inputs = (jnp.arange(x.shape[1]),)
        else:
            x = self.norm(x + self.position(x))
            inputs = ()
        return functional.scan_blocks(
            self.blocks, x.astype(config.dtype), inputs, remat=config.remat, depth=layer
        )

    def encode(self, audio: Float[Array, "B T"], layer: int) -> Float[Array, "B U D"]:
        """As `features`."""
        pool = self.encoder_config.pool
        x = self.hidden(waveform(self.encoder_config, audio), layer).astype(jnp.float32)
        tokens = audio.shape[1] // TOKEN_SAMPLES
        missing = max(0, pool * tokens - x.shape[1])
        x = jnp.pad(x, ((0, 0), (0, missing), (0, 0)), mode="edge")
        return x[:, : pool * tokens].reshape(len(x), tokens, pool, -1).mean(axis=2)


def init(config: Wav2Vec2Config, key: Key[Array, ""]) -> Params:
    """Fresh float32 parameters."""
    return functional.init(Wav2Vec2, config, key=key)


def waveform(config: Wav2Vec2Config, audio: Float[ArrayLike, "B T"]) -> Float[Array, "B N"]:
    """Audio resampled to the network's rate, with zero mean and unit variance per clip, as published."""
    audio = jnp.asarray(audio)
    if config.resample != (1, 1):
        audio = spectral.resample(audio, *config.resample)
    audio = audio.astype(jnp.float32) - audio.mean(axis=1, keepdims=True)
    return audio * jax.lax.rsqrt(jnp.mean(audio**2, axis=1, keepdims=True) + 1e-7)


def hidden(
    params: Params, config: Wav2Vec2Config, wave: Float[ArrayLike, "B N"], layer: int
) -> Float[Array, "B L D"]:
    """Activations after `layer` blocks of the result of `waveform`, at the unpooled rate."""
    return functional.bind(Wav2Vec2, config, params=params).hidden(jnp.asarray(wave), layer)


def features(
    params: Params, config: Wav2Vec2Config, audio: Float[ArrayLike, "B T"], layer: int
) -> Float[Array, "B U D"]:
    """Float32 activations after `layer` blocks, pooled to U = T // 960 tokens.

    The convolutions do not pad, so the last frames are missing: the last frame is repeated in their place.
    """
    return functional.bind(Wav2Vec2, config, params=params).encode(jnp.asarray(audio), layer)
