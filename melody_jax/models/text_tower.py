"""The text encoder: BERT and what has its shape: MiniLM, RoBERTa (arXiv 1810.04805, 2002.10957, 1907.11692).

The text tower of the paper's MuLan is BERT-base (melody-paper section 2.1); `mini` takes all-MiniLM-L6-v2, CLAP has
RoBERTa. `convert/` reads their weights. Learned absolute positions. B batch, N word pieces, D width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from melody_jax import sharding
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.bert_block import Block, BlockConfig, layer_norm, linear
from melody_jax.models.functional import Params, Remat
from melody_jax.models.layers import MASKED


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Shape of the text encoder. The defaults are MiniLM's."""

    vocab_size: int = 7680
    """Word pieces: the lines of the packaged `assets/vocab.txt`."""
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
    epsilon: float = 1e-12
    """Of the norms."""
    pooling: str = "mean"
    """How a text becomes one vector: "mean" over its word pieces, or "first", a tanh layer on [CLS] (BERT's pooler)."""
    dtype: str = "float32"
    """Compute dtype of the matrix products; norms and softmax are float32."""
    remat: Remat = "none"
    """What the backward pass computes again: "none", "dots" or "blocks" (models/functional.py)."""

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "first"):
            raise UserError(f"pooling {self.pooling!r}: it must be 'mean' or 'first'")

    @property
    def block(self) -> BlockConfig:
        """Shape of one block."""
        return BlockConfig(
            width=self.width, heads=self.heads, ffn=self.ffn, epsilon=self.epsilon, dtype=self.dtype
        )


BERT_BASE = TextConfig(vocab_size=30_522, layers=12, width=768, heads=12, ffn=3072, max_length=512)
"""bert-base-uncased: 108.9 M parameters without its pooler."""
ROBERTA_BASE = TextConfig(
    vocab_size=50_265, layers=12, width=768, heads=12, ffn=3072, max_length=512, pooling="first"
)
"""The text tower of CLAP, roberta-base with a pooler: 124.6 M parameters."""


def init(config: TextConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters. Raises `UserError` if the heads do not divide the width."""
    words, positions, blocks, pooler = jax.random.split(key, 4)
    params = {
        "words": 0.02 * jax.random.normal(words, (config.vocab_size, config.width)),
        "positions": 0.02 * jax.random.normal(positions, (config.max_length, config.width)),
        "norm": functional.init(layer_norm, config.width, config.epsilon, key=key),
        "blocks": functional.init_stack(Block, config.block, key=blocks, depth=config.layers),
    }
    if config.pooling == "first":
        params["pooler"] = functional.init(linear, config.width, config.width, "float32", key=pooler)
    return params


def encode(params: Params, config: TextConfig, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """One vector a text: ids and mask (B, N), N <= `max_length` -> (B, D) float32.

    `mask` is 1.0 for word pieces and 0.0 for padding, what `text.py:tokenize` gives.
    """
    if ids.shape[1] > config.max_length:
        raise UserError(f"{ids.shape[1]} word pieces: the text encoder takes at most {config.max_length}")
    mask = jnp.asarray(mask, jnp.float32)
    x = sharding.embed_lookup(params["words"], ids) + params["positions"][: ids.shape[1]]
    norm = functional.bind(layer_norm, config.width, config.epsilon, params=params["norm"])
    bias, blocks = MASKED * (1.0 - mask)[:, None, None, :], params["blocks"]
    x = functional.scan_blocks(
        Block, config.block, params=blocks, x=norm(x).astype(config.dtype), inputs=(bias,), remat=config.remat
    )
    x = x.astype(jnp.float32)
    if config.pooling == "first":
        pooler = functional.bind(linear, config.width, config.width, "float32", params=params["pooler"])
        return jnp.tanh(pooler(x[:, 0]))
    return (x * mask[..., None]).sum(1) / jnp.maximum(mask.sum(1, keepdims=True), 1.0)
