"""The Conformer (arXiv 2005.08100) over spectra: the encoder of `mini`'s semantic tokenizer.

Rotary positions, RMSNorms, and attention within a finite window, so that a crop changes few tokens near its ends. The
paper's tokenizer, on waveforms, is `models/wav2vec2.py`.

B batch, U tokens, F input channels, D channels.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.layers import MASKED, Linear, RMSNorm, merge_heads, rotary, split_heads
from melody_jax.models.platform import attend, depthwise_conv
from melody_jax.roles import WEIGHT


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
    """Taps of the depthwise convolution in tokens; odd."""
    attention_window: int = 24
    """Tokens on each side that attention reaches. A finite window keeps tokens stable near the ends of a crop."""
    layer: int = 2
    """The features are the activations after this many blocks, 0 to `layers`."""

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
        self.up = Linear(width, hidden, lora=True, rngs=rngs)
        self.down = Linear(hidden, width, role="row", lora=True, rngs=rngs)

    def __call__(self, x: Float[Array, "B U D"]) -> Float[Array, "B U D"]:
        """The residual update."""
        return self.down(jax.nn.silu(self.up(self.norm(x))))


class Convolution(nnx.Module):
    """The Conformer's convolution module without the residual: gated pointwise, depthwise, norm, SiLU, pointwise.

    The norm is over channels; the original's is over the batch. So no item depends on other items or on the length.
    """

    def __init__(self, width: int, kernel: int, *, rngs: nnx.Rngs) -> None:
        self.norm = RMSNorm(width, rngs=rngs)
        self.gate = Linear(width, 2 * width, rngs=rngs)
        depthwise = jax.random.normal(rngs.params(), (kernel, width)) * kernel**-0.5
        self.depthwise = nnx.Param(depthwise, role=WEIGHT)
        self.middle = RMSNorm(width, rngs=rngs)
        self.out = Linear(width, width, role="row", rngs=rngs)

    def __call__(self, x: Float[Array, "B U D"]) -> Float[Array, "B U D"]:
        """The residual update."""
        value, gate = jnp.split(self.gate(self.norm(x)), 2, axis=-1)
        h = depthwise_conv(value * jax.nn.sigmoid(gate), self.depthwise[...])
        return self.out(jax.nn.silu(self.middle(h)))


class Block(nnx.Module):
    """Half a feed-forward layer, attention with rotary positions, convolution, half a feed-forward layer, norm."""

    def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs) -> None:
        self.heads = config.heads
        self.before = FeedForward(config.width, config.ffn, rngs=rngs)
        self.attention_norm = RMSNorm(config.width, rngs=rngs)
        self.qkv = Linear(config.width, 3 * config.width, lora=True, use_bias=False, rngs=rngs)
        self.attention_out = Linear(config.width, config.width, role="row", lora=True, rngs=rngs)
        self.convolution = Convolution(config.width, config.kernel, rngs=rngs)
        self.after = FeedForward(config.width, config.ffn, rngs=rngs)
        self.norm = RMSNorm(config.width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B U D"], positions: Int[Array, " U"], bias: Float[Array, "U U"]
    ) -> Float[Array, "B U D"]:
        """One block; `positions` are in tokens, `bias` is added to the attention scores."""
        x = x + 0.5 * self.before(x)
        q, k, v = (
            split_heads(h, self.heads) for h in jnp.split(self.qkv(self.attention_norm(x)), 3, axis=-1)
        )
        attended = attend(rotary(q, positions), rotary(k, positions), v, bias)
        x = x + self.attention_out(merge_heads(attended))
        x = x + self.convolution(x)
        return self.norm(x + 0.5 * self.after(x))


class Conformer(nnx.Module):
    """The network for inputs of F = `channels`."""

    def __init__(self, config: ConformerConfig, channels: int, *, rngs: nnx.Rngs) -> None:
        input_key, block_key = functional.split_key(rngs, 2)
        self.attention_window = config.attention_window
        self.input = Linear(channels, config.width, rngs=functional.make_rngs(input_key))
        self.blocks = functional.stack(Block, config, depth=config.layers, key=block_key)

    def encode(self, inputs: Float[Array, "B U F"], layer: int) -> Float[Array, "B U D"]:
        """Activations after `layer` blocks of normalised input channels."""
        x = self.input(inputs)
        positions = jnp.arange(x.shape[1])
        bias = MASKED * (jnp.abs(positions - positions[:, None]) > self.attention_window)
        return functional.scan_blocks(self.blocks, x, (positions, bias), depth=layer)
