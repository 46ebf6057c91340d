"""The Conformer (arXiv 2005.08100) over spectra: `mini`'s semantic tokenizer listens with it.

Rotary positions, RMSNorms, attention within a finite window, so that tokens near the ends of a crop stay what they are.
The tokenizer of the paper, on waveforms, is `models/wav2vec2.py`. B batch, U tokens, F input channels, D channels.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.functional import Params
from melody_jax.models.layers import MASKED, RMSNorm, attend, depthwise_conv, merge_heads, rotary, split_heads


@dataclass(frozen=True, kw_only=True)
class ConformerConfig:
    """Shape of the encoder. The defaults are `mini`: 2.0 M parameters, 1.2 GFLOP per 10 s in all blocks."""

    layers: int = 4
    """Blocks."""
    width: int = 160
    """Channels D."""
    heads: int = 4
    """Attention heads; they divide `width` into even head widths."""
    ffn: int = 448
    """Hidden channels of each of a block's two feed-forward layers."""
    kernel: int = 15
    """Taps of the depthwise convolution, tokens, odd."""
    attention_window: int = 24
    """How many tokens to each side attention sees. A finite window keeps tokens stable near the ends of a crop."""
    layer: int = 2
    """Which activations are the features: after this many blocks, 0 to `layers`."""

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise UserError(f"width {self.width} must be a multiple of twice the {self.heads} heads")
        if self.kernel % 2 == 0:
            raise UserError(f"kernel {self.kernel} must be odd")
        if not 0 <= self.layer <= self.layers:
            raise UserError(f"layer {self.layer} must lie in 0 to {self.layers}")


TINY = ConformerConfig(layers=2, width=32, heads=2, ffn=64, kernel=5, attention_window=6, layer=1)
"""For tests."""


class FeedForward(nnx.Module):
    """Pre-norm two-layer SiLU network without the residual."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.norm = RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) to what is added to it."""
        return self.down(jax.nn.silu(self.up(self.norm(x))))


class Convolution(nnx.Module):
    """The Conformer's convolution module without the residual: gated pointwise, depthwise, norm, SiLU, pointwise.

    The norm is over channels, where the original has one over the batch: nothing depends on other items or on length.
    """

    def __init__(self, width: int, kernel: int, *, rngs: nnx.Rngs) -> None:
        self.norm = RMSNorm(width, rngs=rngs)
        self.gate = nnx.Linear(width, 2 * width, rngs=rngs)
        self.depthwise = nnx.Param(jax.random.normal(rngs.params(), (kernel, width)) * kernel**-0.5)
        self.middle = RMSNorm(width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, U, D) to what is added to it."""
        value, gate = jnp.split(self.gate(self.norm(x)), 2, axis=-1)
        h = depthwise_conv(value * jax.nn.sigmoid(gate), self.depthwise[...])
        return self.out(jax.nn.silu(self.middle(h)))


class Block(nnx.Module):
    """A block with rotary positions: half feed-forward, attention, convolution, half."""

    def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs) -> None:
        self.heads = config.heads
        self.before = FeedForward(config.width, config.ffn, rngs=rngs)
        self.attention_norm = RMSNorm(config.width, rngs=rngs)
        self.qkv = nnx.Linear(config.width, 3 * config.width, use_bias=False, rngs=rngs)
        self.attention_out = nnx.Linear(config.width, config.width, rngs=rngs)
        self.convolution = Convolution(config.width, config.kernel, rngs=rngs)
        self.after = FeedForward(config.width, config.ffn, rngs=rngs)
        self.norm = RMSNorm(config.width, rngs=rngs)

    def __call__(self, x: jax.Array, positions: jax.Array, bias: jax.Array) -> jax.Array:
        """(B, U, D) to (B, U, D); `positions` (U,) in tokens, `bias` (U, U) additive."""
        x = x + 0.5 * self.before(x)
        q, k, v = (
            split_heads(h, self.heads) for h in jnp.split(self.qkv(self.attention_norm(x)), 3, axis=-1)
        )
        attended = attend(rotary(q, positions), rotary(k, positions), v, bias)
        x = x + self.attention_out(merge_heads(attended))
        x = x + self.convolution(x)
        return self.norm(x + 0.5 * self.after(x))


def init(config: ConformerConfig, channels: int, key: jax.Array) -> Params:
    """Fresh float32 parameters for inputs of F = `channels`."""
    input_key, block_key = jax.random.split(key)
    return {
        "input": functional.init(nnx.Linear, channels, config.width, key=input_key),
        "blocks": functional.init_stack(Block, config, key=block_key, depth=config.layers),
    }


def encode(params: Params, config: ConformerConfig, inputs: jax.Array, layer: int) -> jax.Array:
    """Activations (B, U, D) after `layer` blocks of normalised input channels (B, U, F)."""
    x = functional.bind(nnx.Linear, inputs.shape[-1], config.width, params=params["input"])(inputs)
    positions = jnp.arange(x.shape[1])
    bias = MASKED * (jnp.abs(positions - positions[:, None]) > config.attention_window)
    blocks = jax.tree.map(lambda leaf: leaf[:layer], params["blocks"])
    return functional.scan_blocks(Block, config, params=blocks, x=x, inputs=(positions, bias))
