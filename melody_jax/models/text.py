"""The text encoder: a BERT-style transformer with mean pooling that MiniLM's weights fit (arXiv 2002.10957).

The text tower of the paper's MuLan is BERT-base (melody-paper section 2.1); `mini` takes all-MiniLM-L6-v2, whose
weights `data/text.py:load_minilm` reads. Post-norm blocks, exact (erf) GELU, learned absolute positions, LayerNorm with
epsilon 1e-12. B batch, N word pieces, H heads, D width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.functional import Params
from melody_jax.models.layers import attend, merge_heads, split_heads

MASKED = -1e9


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Shape of the text encoder. The defaults are MiniLM's."""

    vocab_size: int = 7680
    """Word pieces: the lines of the packaged `data/vocab.txt`."""
    layers: int = 6
    """Transformer blocks."""
    width: int = 384
    """Channels D, also of the pooled output."""
    heads: int = 12
    """Attention heads; they divide `width`."""
    ffn: int = 1536
    """Hidden channels of the feed-forward layer."""
    max_length: int = 64
    """Word pieces a text may have, [CLS] and [SEP] included."""
    dtype: str = "float32"
    """Compute dtype of the matrix products; norms and softmax are float32."""


def _norm(config: TextConfig, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.width, epsilon=1e-12, use_fast_variance=False, rngs=rngs)


def _linear(inputs: int, outputs: int, config: TextConfig, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.normal(0.02)
    return nnx.Linear(inputs, outputs, kernel_init=init, dtype=jnp.dtype(config.dtype), rngs=rngs)


class Block(nnx.Module):
    """Self-attention and feed-forward layer, each followed by residual sum and LayerNorm."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs) -> None:
        self.heads = config.heads
        self.qkv = _linear(config.width, 3 * config.width, config, rngs)
        self.out = _linear(config.width, config.width, config, rngs)
        self.norm = _norm(config, rngs=rngs)
        self.up = _linear(config.width, config.ffn, config, rngs)
        self.down = _linear(config.ffn, config.width, config, rngs)
        self.ffn_norm = _norm(config, rngs=rngs)

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """One block on (B, N, D); `bias` (B, 1, 1, N) is additive."""
        q, k, v = (split_heads(h, self.heads) for h in jnp.split(self.qkv(x), 3, axis=-1))
        x = self.norm(x + self.out(merge_heads(attend(q, k, v, bias))))
        return self.ffn_norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


def init(config: TextConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters. Raises `UserError` if the heads do not divide the width."""
    if config.width % config.heads:
        raise UserError(f"text width {config.width} must be a multiple of the {config.heads} heads")
    words, positions, blocks = jax.random.split(key, 3)
    return {
        "words": 0.02 * jax.random.normal(words, (config.vocab_size, config.width)),
        "positions": 0.02 * jax.random.normal(positions, (config.max_length, config.width)),
        "norm": functional.init(_norm, config, key=key),
        "blocks": functional.init_stack(Block, config, key=blocks, depth=config.layers),
    }


def encode(params: Params, config: TextConfig, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of the last layer over the real word pieces: ids and mask (B, N), N <= `max_length` -> (B, D) float32.

    `mask` is 1.0 for word pieces and 0.0 for padding, what `data/text.py:tokenize` gives.
    """
    if ids.shape[1] > config.max_length:
        raise UserError(f"{ids.shape[1]} word pieces: the text encoder takes at most {config.max_length}")
    mask = jnp.asarray(mask, jnp.float32)
    x = params["words"][ids] + params["positions"][: ids.shape[1]]
    x = functional.bind(_norm, config, params=params["norm"])(x).astype(config.dtype)
    bias = MASKED * (1.0 - mask)[:, None, None, :]
    x = functional.scan_blocks(Block, config, params=params["blocks"], x=x, inputs=(bias,)).astype(jnp.float32)
    return (x * mask[..., None]).sum(1) / jnp.maximum(mask.sum(1, keepdims=True), 1.0)
