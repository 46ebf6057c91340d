"""wav2vec 2.0's family: waveform, strided convolutions, transformer or Conformer blocks (arXiv 2006.11477, 2005.08100).

What the paper's semantic tokenizer is (section 2.2 of melody-paper: Wav2Vec2-Conformer with rotary positions), and what
MERT and HuBERT are (transformer blocks with a convolution for positions). Blocks are those of the published code, so
that published weights fit: LayerNorms, rotary positions *before* the query and key projections, and in the Conformer's
convolution an affine map where that code has a batch norm, which at inference is one.

B batch, T samples at 24 kHz, U tokens, D width, C convolution channels.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from melody_jax import spectral
from melody_jax.audio import TOKEN_SAMPLES
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.bert_block import Block, BlockConfig, layer_norm, linear
from melody_jax.models.functional import Params, Remat
from melody_jax.models.layers import attend, depthwise_conv, merge_heads, rotary, split_heads

EPSILON = 1e-5
gelu = partial(jax.nn.gelu, approximate=False)
ACTIVATIONS = {"gelu": gelu, "swish": jax.nn.silu}


@dataclass(frozen=True, kw_only=True)
class Wav2Vec2Config:
    """Shape of the encoder. The defaults are the paper's tokenizer, as far as it is published."""

    resample: tuple[int, int] = (2, 3)
    """The network's sample rate over 24 kHz; (2, 3) is 16 kHz."""
    channels: int = 512
    """Channels C of the convolutions."""
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Their taps."""
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    """Their strides; the product is 320 samples: 50 Hz at 16 kHz."""
    channel_norm: bool = True
    """A LayerNorm after every convolution, which then has a bias; else one norm over time after the first."""
    conformer: bool = True
    """Conformer blocks with rotary positions; else transformer blocks and a convolution for positions."""
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
    """Of the Conformer's feed-forward layers and convolution: "swish" or "gelu"."""
    position_kernel: int = 128
    """Taps of the transformer's convolution for positions."""
    position_groups: int = 16
    """Its groups."""
    pool: int = 2
    """Frames averaged to a token: 2 of 50 Hz, 3 of MERT's 75 Hz, make 25 Hz."""
    layer: int = 7
    """Which activations are the features: after this many blocks, 0 to `layers`."""
    dtype: str = "float32"
    """Compute dtype of the blocks' matrix products; norms and softmax are float32."""
    remat: Remat = "none"
    """What the backward pass computes again: "none", "dots" or "blocks" (models/functional.py)."""

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
        self.down = linear(config.ffn, config.width, config.dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) to what is added to it."""
        return self.down(self.activation(self.up(self.norm(x))))


class Convolution(nnx.Module):
    """The Conformer's convolution module without the residual."""

    def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs) -> None:
        width = config.width
        self.activation = ACTIVATIONS[config.activation]
        self.norm = layer_norm(width, EPSILON, rngs=rngs)
        self.gate = linear(width, 2 * width, config.dtype, bias=False, rngs=rngs)
        self.depthwise = nnx.Param(
            jax.random.normal(rngs.params(), (config.kernel, width)) * config.kernel**-0.5
        )
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.out = linear(width, width, config.dtype, bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, U, D) to what is added to it."""
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
        self.attention_out = linear(config.width, config.width, config.dtype, rngs=rngs)
        self.convolution = Convolution(config, rngs=rngs)
        self.after = FeedForward(config, rngs=rngs)
        self.norm = layer_norm(config.width, EPSILON, rngs=rngs)

    def __call__(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """(B, U, D) to the same; `positions` (U,) in frames."""
        x = x + 0.5 * self.before(x)
        h = self.attention_norm(x)
        turned = merge_heads(rotary(split_heads(h, self.heads), positions))
        q, k = jnp.split(self.query_key(turned), 2, axis=-1)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, self.value(h)))
        x = x + self.attention_out(merge_heads(attend(q, k, v)))
        x = x + self.convolution(x)
        return self.norm(x + 0.5 * self.after(x))


def init(config: Wav2Vec2Config, key: jax.Array) -> Params:
    """Fresh float32 parameters."""
    conv_key, input_key, position_key, block_key = jax.random.split(key, 4)
    params: Params = {
        "convolutions": {
            str(i): _init_convolution(config, i, jax.random.fold_in(conv_key, i))
            for i in range(len(config.kernels))
        },
        "input_norm": functional.init(layer_norm, config.channels, EPSILON, key=input_key),
        "input": functional.init(nnx.Linear, config.channels, config.width, key=input_key),
    }
    if config.conformer:
        return params | {
            "blocks": functional.init_stack(ConformerBlock, config, key=block_key, depth=config.layers)
        }
    shape = (config.position_kernel, config.width // config.position_groups, config.width)
    scale = 2.0 * (config.position_kernel * config.width) ** -0.5
    return params | {
        "position": {
            "kernel": scale * jax.random.normal(position_key, shape),
            "bias": jnp.zeros(config.width),
        },
        "norm": functional.init(layer_norm, config.width, EPSILON, key=key),
        "blocks": functional.init_stack(Block, config.block, key=block_key, depth=config.layers),
    }


def _init_convolution(config: Wav2Vec2Config, i: int, key: jax.Array) -> Params:
    fan_in = config.kernels[i] * (config.channels if i else 1)
    shape = (config.kernels[i], config.channels if i else 1, config.channels)
    layer: Params = {"kernel": jax.random.normal(key, shape) * (2 / fan_in) ** 0.5}
    if config.channel_norm:
        layer["bias"] = jnp.zeros(config.channels)
    if config.channel_norm or i == 0:
        layer["norm"] = functional.init(layer_norm, config.channels, EPSILON, key=key)
    return layer


def waveform(config: Wav2Vec2Config, audio: jax.Array) -> jax.Array:
    """Audio (B, T) at 24 kHz at the network's rate, with zero mean and unit variance per clip, as published."""
    if config.resample != (1, 1):
        audio = spectral.resample(audio, *config.resample)
    audio = audio.astype(jnp.float32) - audio.mean(axis=1, keepdims=True)
    return audio * jax.lax.rsqrt(jnp.mean(audio**2, axis=1, keepdims=True) + 1e-7)


def convolve(params: Params, config: Wav2Vec2Config, wave: jax.Array) -> jax.Array:
    """The strided convolutions without padding: (B, N) to (B, U', C), float32."""
    x = wave
    for i, (kernel, stride) in enumerate(zip(config.kernels, config.strides, strict=True)):
        layer = params["convolutions"][str(i)]
        if i == 0:  # one input channel: frames times a matrix
            x = spectral.frame(x, kernel, stride, center=False) @ layer["kernel"][:, 0]
        else:
            x = jax.lax.conv_general_dilated(
                x, layer["kernel"], (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
            )
        if config.channel_norm:
            x = functional.bind(layer_norm, config.channels, EPSILON, params=layer["norm"])(x + layer["bias"])
        elif i == 0:
            x = x - x.mean(axis=1, keepdims=True)
            x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + EPSILON)
            x = x * layer["norm"]["scale"] + layer["norm"]["bias"]
        x = gelu(x)
    return x


def hidden(params: Params, config: Wav2Vec2Config, wave: jax.Array, layer: int) -> jax.Array:
    """Activations (B, U', D) after `layer` blocks, of what `waveform` returns, at the unpooled rate."""
    x = convolve(params, config, wave)
    x = functional.bind(layer_norm, config.channels, EPSILON, params=params["input_norm"])(x)
    x = functional.bind(nnx.Linear, config.channels, config.width, params=params["input"])(x)
    blocks = jax.tree.map(lambda leaf: leaf[:layer], params["blocks"])
    if config.conformer:
        positions = jnp.arange(x.shape[1])
        return functional.scan_blocks(
            ConformerBlock,
            config,
            params=blocks,
            x=x.astype(config.dtype),
            inputs=(positions,),
            remat=config.remat,
        )
    x = x + _positions(params["position"], config, x)
    x = functional.bind(layer_norm, config.width, EPSILON, params=params["norm"])(x)
    return functional.scan_blocks(
        Block, config.block, params=blocks, x=x.astype(config.dtype), remat=config.remat
    )


def _positions(params: Params, config: Wav2Vec2Config, x: jax.Array) -> jax.Array:
    half, even = config.position_kernel // 2, 1 - config.position_kernel % 2
    x = jax.lax.conv_general_dilated(
        x, params["kernel"], (1,), ((half, half - even),), dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=config.position_groups,
    )  # fmt: skip
    return gelu(x + params["bias"])


def features(params: Params, config: Wav2Vec2Config, audio: jax.Array, layer: int) -> jax.Array:
    """Activations after `layer` blocks, pooled to tokens: audio (B, T) at 24 kHz to (B, T // 960, D), float32.

    The convolutions do not pad and leave the last frames out; the last token is the mean of what there is.
    """
    x = hidden(params, config, waveform(config, audio), layer)
    tokens = audio.shape[1] // TOKEN_SAMPLES
    x = jnp.pad(
        x.astype(jnp.float32), ((0, 0), (0, max(0, config.pool * tokens - x.shape[1])), (0, 0)), mode="edge"
    )
    return x[:, : config.pool * tokens].reshape(len(x), tokens, config.pool, -1).mean(axis=2)
