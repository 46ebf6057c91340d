"""The text encoder, of BERT's shape: BERT, MiniLM, RoBERTa (arXiv 1810.04805, 2002.10957, 1907.11692).

The text tower of the paper's MuLan (arXiv 2208.12415) is BERT-base; `mini` uses all-MiniLM-L6-v2, CLAP has RoBERTa.
`convert/` reads their weights. Positions are learned and absolute.

B batch, N word pieces, D width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, Num

from melody_jax import sharding
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.bert_block import Block, BlockConfig, layer_norm, linear
from melody_jax.models.functional import Params, Remat, make_rngs
from melody_jax.models.layers import MASKED
from melody_jax.roles import EMBEDDING


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Shape of the text encoder. The defaults are MiniLM's."""

    vocab_size: int = 7680
    """Word pieces: lines of the packaged `assets/vocab.txt`."""
    layers: int = 6
    """Transformer blocks."""
    width: int = 384
    """Channels D, also of the pooled output."""
    heads: int = 12
    """Attention heads; they divide `width`."""
    ffn: int = 1536
    """Hidden channels of the feed-forward layer."""
    max_length: int = 64
    """Longest text in word pieces, [CLS] and [SEP] included."""
    epsilon: float = 1e-12
    """Added to the variance in the norms."""
    pooling: str = "mean"
    """How a text becomes one vector: "mean" over its word pieces, or "first", a tanh layer on [CLS] (BERT's pooler)."""
    dtype: str = "float32"
    """Compute dtype of the matrix products; norms and softmax are float32."""
    remat: Remat = "none"
    """What the backward pass recomputes: "none", "dots" or "blocks" (models/functional.py)."""

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


class TextEncoder(nnx.Module):
    """The network."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs) -> None:
        width = config.width
        word_key, position_key, block_key, pooler_key = functional.split_key(rngs, 4)
        self.config = config
        self.words = nnx.Param(0.02 * jax.random.normal(word_key, (config.vocab_size, width)), role=EMBEDDING)
        self.positions = nnx.Param(
            0.02 * jax.random.normal(position_key, (config.max_length, width)), role=EMBEDDING
        )
        self.norm = layer_norm(width, config.epsilon, rngs=rngs)
        self.blocks = functional.stack(Block, config.block, depth=config.layers, key=block_key)
        has_pooler = config.pooling == "first"
        self.pooler = linear(width, width, "float32", rngs=make_rngs(pooler_key)) if has_pooler else None

    def pieces(self, ids: Int[Array, "B N"], mask: Num[Array, "B N"]) -> Float[Array, "B N D"]:
        """As `encode_pieces`."""
        length = ids.shape[1]
        if length > self.config.max_length:
            raise UserError(f"{length} word pieces: the text encoder takes at most {self.config.max_length}")
        mask = mask.astype(jnp.float32)
        x = sharding.embed_lookup(self.words[...], ids) + self.positions[:length]
        x = self.norm(x).astype(self.config.dtype)
        bias = MASKED * (1.0 - mask)[:, None, None, :]
        x = functional.scan_blocks(self.blocks, x, (bias,), remat=self.config.remat)
        return x.astype(jnp.float32)

    def __call__(self, ids: Int[Array, "B N"], mask: Num[Array, "B N"]) -> Float[Array, "B D"]:
        """As `encode`."""
        mask = mask.astype(jnp.float32)
        x = self.pieces(ids, mask)
        if self.pooler is not None:
            return jnp.tanh(self.pooler(x[:, 0]))
        return (x * mask[..., None]).sum(1) / jnp.maximum(mask.sum(1, keepdims=True), 1.0)


def init(config: TextConfig, key: Key[Array, ""]) -> Params:
    """Fresh float32 parameters. Raises `UserError` if the heads do not divide the width."""
    return functional.init(TextEncoder, config, key=key)


def encode(
    params: Params, config: TextConfig, ids: Int[ArrayLike, "B N"], mask: Num[ArrayLike, "B N"]
) -> Float[Array, "B D"]:
    """One float32 vector per text from the ids and mask of `text.py: tokenize`, N <= `max_length`.

    `mask` is 1 for word pieces and 0 for padding.
    """
    encoder = functional.bind(TextEncoder, config, params=params)
    return encoder(jnp.asarray(ids), jnp.asarray(mask))


def encode_pieces(
    params: Params, config: TextConfig, ids: Int[ArrayLike, "B N"], mask: Num[ArrayLike, "B N"]
) -> Float[Array, "B N D"]:
    """One float32 vector per word piece, arguments as for `encode`; those of padding mean nothing."""
    encoder = functional.bind(TextEncoder, config, params=params)
    return encoder.pieces(jnp.asarray(ids), jnp.asarray(mask))
