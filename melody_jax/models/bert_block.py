"""The bidirectional transformer block of BERT, RoBERTa, HuBERT (norms after the sums) and of ViT and AST (before).

Learned LayerNorms with an offset, biases everywhere, exact (erf) GELU: what published encoders have in common. Our own
networks have RMSNorms and rotary positions instead (`models/layers.py`). B batch, N positions, D width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from melody_jax.errors import UserError
from melody_jax.models.layers import attend, merge_heads, split_heads


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Shape of a block."""

    width: int
    """Channels D."""
    heads: int
    """Attention heads; they divide `width`."""
    ffn: int
    """Hidden channels of the feed-forward layer."""
    norm_first: bool = False
    """Norms before each half (ViT, AST) rather than after the sum (BERT)."""
    epsilon: float = 1e-12
    """Of the norms."""
    dtype: str = "float32"
    """Compute dtype of the matrix products; norms and softmax are float32."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width {self.width} must be a multiple of the {self.heads} heads")


def layer_norm(width: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm whose variance is computed as published code does."""
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


def linear(inputs: int, outputs: int, dtype: str, bias: bool = True, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer that starts as BERT's do, with a deviation of 0.02."""
    init = nnx.initializers.normal(0.02)
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=init, dtype=jnp.dtype(dtype), rngs=rngs)


class Block(nnx.Module):
    """Self-attention and a feed-forward layer, each with a residual sum and a LayerNorm."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.qkv = linear(config.width, 3 * config.width, config.dtype, rngs=rngs)
        self.out = linear(config.width, config.width, config.dtype, rngs=rngs)
        self.norm = layer_norm(config.width, config.epsilon, rngs=rngs)
        self.up = linear(config.width, config.ffn, config.dtype, rngs=rngs)
        self.down = linear(config.ffn, config.width, config.dtype, rngs=rngs)
        self.ffn_norm = layer_norm(config.width, config.epsilon, rngs=rngs)

    def __call__(self, x: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """One block on (B, N, D); `bias` (B, 1, 1, N) is additive."""
        if self.config.norm_first:
            x = x + self._attend(self.norm(x), bias)
            return x + self._feed(self.ffn_norm(x))
        x = self.norm(x + self._attend(x, bias))
        return self.ffn_norm(x + self._feed(x))

    def _attend(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        q, k, v = (split_heads(h, self.config.heads) for h in jnp.split(self.qkv(x), 3, axis=-1))
        return self.out(merge_heads(attend(q, k, v, bias)))

    def _feed(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(x), approximate=False))
