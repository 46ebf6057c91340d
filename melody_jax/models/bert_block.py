"""The bidirectional transformer block of BERT, RoBERTa and HuBERT (norms after the sums), and of ViT and AST (before).

Learned LayerNorms with an offset, biases everywhere, exact (erf) GELU: published encoders have these in common. The
networks of this package have RMSNorms and rotary positions instead (`models/layers.py`).

B batch, N positions, H heads, D width, P values of a patch.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from melody_jax.errors import UserError
from melody_jax.models.layers import Linear, merge_heads, split_heads
from melody_jax.models.platform import attend
from melody_jax.roles import BIAS, COLUMN, NORM, Kind


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
    """Added to the variance in the norms."""
    dtype: str = "float32"
    """Compute dtype of the matrix products; norms and softmax are float32."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width {self.width} must be a multiple of the {self.heads} heads")


def layer_norm(width: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm whose variance is computed as published code does."""
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        use_fast_variance=False,
        scale_metadata={"role": NORM},
        bias_metadata={"role": BIAS},
        rngs=rngs,
    )


def linear(
    inputs: int,
    outputs: int,
    dtype: str,
    bias: bool = True,
    role: Kind = "column",
    lora: bool = True,
    *,
    rngs: nnx.Rngs,
) -> Linear:
    """A linear layer with BERT's initialisation, a standard deviation of 0.02."""
    init = nnx.initializers.normal(0.02)
    return Linear(
        inputs,
        outputs,
        role=role,
        lora=lora,
        use_bias=bias,
        kernel_init=init,
        dtype=jnp.dtype(dtype),
        rngs=rngs,
    )


class Block(nnx.Module):
    """Self-attention and a feed-forward layer, each with a residual sum and a LayerNorm."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.qkv = linear(config.width, 3 * config.width, config.dtype, rngs=rngs)
        self.out = linear(config.width, config.width, config.dtype, role="row", rngs=rngs)
        self.norm = layer_norm(config.width, config.epsilon, rngs=rngs)
        self.up = linear(config.width, config.ffn, config.dtype, rngs=rngs)
        self.down = linear(config.ffn, config.width, config.dtype, role="row", rngs=rngs)
        self.ffn_norm = layer_norm(config.width, config.epsilon, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B N D"], bias: Float[Array, "B _ _ N"] | None = None
    ) -> Float[Array, "B N D"]:
        """One block; `bias` is added to the attention scores."""
        if self.config.norm_first:
            x = x + self._attend(self.norm(x), bias)
            return x + self._feed_forward(self.ffn_norm(x))
        x = self.norm(x + self._attend(x, bias))
        return self.ffn_norm(x + self._feed_forward(x))

    def _attend(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        q, k, v = (split_heads(h, self.config.heads) for h in jnp.split(self.qkv(x), 3, axis=-1))
        return self.out(merge_heads(attend(q, k, v, bias)))

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class PatchEmbedding(nnx.Module):
    """A linear layer on flattened patches."""

    def __init__(self, inputs: int, width: int, dtype: str, *, key: jax.Array) -> None:
        self.dtype = dtype
        self.kernel = nnx.Param(0.02 * jax.random.normal(key, (inputs, width)), role=COLUMN)
        self.bias = nnx.Param(jnp.zeros(width), role=BIAS)

    def __call__(self, patches: Float[Array, "B ... P"]) -> Float[Array, "B ... D"]:
        """Patches to their embeddings."""
        kernel = self.kernel[...].astype(self.dtype)
        return patches.astype(self.dtype) @ kernel + self.bias[...].astype(self.dtype)
