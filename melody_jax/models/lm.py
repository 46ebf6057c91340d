"""The semantic language model: twelve prefix tokens to 25 Hz semantic tokens (MeLoDy section 3.1, LLaMA shaped).

A decoder-only transformer (RoPE, RMSNorm, SwiGLU) over the sequence [P prefix tokens][U semantic tokens]. Every prefix
level has its own embedding table with one more entry, the learned null: replacing all levels by their null gives the
unconditional model for classifier-free guidance, replacing the deep ones a coarser description of the same clip.
The head covers the semantic ids only. Positions enter through RoPE alone, so windows may start anywhere in a piece.

With `tokens_per_pass` n, a position holds n tokens: their embeddings are merged into one, and one pass through the
blocks gives the first token of the next group, a small network the others, each given those before it in the group
(RQ-Transformer, arXiv 2203.01941; MusicGen and Magenta RealTime do so with the codes of a frame). It is the chain rule
still, so what is drawn has the model's own distribution: nothing is drafted and nothing refused.

Drawing tokens one after the other is `models/decoding.py`.

B batch, P prefix levels, U semantic tokens, G = U / n groups, T = P + G positions, H heads, D channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from melody_jax import sharding
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.functional import Params, Remat
from melody_jax.models.layers import MASKED, RMSNorm, attend, merge_heads, rotary, split_heads
from melody_jax.models.recall import Heard, Recall


@dataclass(frozen=True, kw_only=True)
class LMConfig:
    """Shape of the language model. The defaults are `mini`: 2.2 M parameters in the blocks."""

    layers: int = 5
    """Transformer blocks."""
    width: int = 192
    """Channels D of the residual stream."""
    heads: int = 4
    """Attention heads; they divide `width` into even head widths."""
    ffn: int = 512
    """Hidden channels of the SwiGLU feed-forward layer."""
    prefix_levels: int = 12
    """Prefix tokens P: levels of the residual quantiser of the joint text and music embedding."""
    prefix_codes: int = 256
    """Codes a prefix level (1024 in `paper`)."""
    prefix_everywhere: bool = True
    """Also adds the prefix to the embedding of every semantic token (not in `paper`): until attention has learned to
    look back, which takes a small network most of its training, this is how the prefix is heard."""
    recall: bool = True
    """Finds where the music was like this before and may go on as it went there (models/recall.py; not in `paper`)."""
    semantic_vocab: int = 1024
    """Semantic ids."""
    tokens_per_pass: int = 1
    """Tokens n that one pass through the blocks gives (1 in `paper`); above 1 without `recall` only."""
    dropout: float = 0.0
    """Probability of zeroing a channel of an embedding or of a residual update, in training only."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies; positions are token indices."""
    dtype: str = "float32"
    """Compute dtype of the matrix products; norms, softmax and logits are float32."""
    remat: Remat = "none"
    """What the backward pass computes again: "none", "dots" or "blocks" (models/functional.py)."""

    def __post_init__(self) -> None:
        if self.tokens_per_pass < 1 or (self.tokens_per_pass > 1 and self.recall):
            raise UserError(
                f"tokens_per_pass is {self.tokens_per_pass}: it must be 1, or more with recall False"
            )


TINY = LMConfig(layers=2, width=64, heads=2, ffn=128, prefix_codes=8, semantic_vocab=64)
"""For tests."""
PAPER = LMConfig(
    layers=24,
    width=1024,
    heads=16,
    ffn=4096,
    prefix_codes=1024,
    prefix_everywhere=False,
    recall=False,
    dropout=0.1,
)
"""Settles the paper's 429.5 M parameters (that figure counts a head over the prefix ids too)."""
MODERN = LMConfig(
    layers=24,
    width=1024,
    heads=16,
    ffn=4096,
    prefix_codes=1024,
    recall=False,
    tokens_per_pass=2,
    dropout=0.1,
)
"""The paper's size at half of its passes."""


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout with 16-bit draws; `key` None or rate 0 returns x."""
    if key is None or rate == 0.0:
        return x
    kept = jax.random.bits(key, x.shape, jnp.uint16) >= round(rate * 65536)
    return x * (kept.astype(x.dtype) / (1.0 - rate))


def _linear(
    dtype: jnp.dtype, product: Callable, rngs: nnx.Rngs, inputs: int, outputs: int, gain: float = 1.0
) -> nnx.Linear:
    init = nnx.initializers.normal(gain * inputs**-0.5)
    return nnx.Linear(
        inputs, outputs, use_bias=False, kernel_init=init, dtype=dtype, dot_general=product, rngs=rngs
    )


class Block(nnx.Module):
    """Pre-norm attention and SwiGLU. Split in two halves around the attention so that cached decoding shares it.

    `product` is what multiplies with the weights, in place of `jax.lax.dot_general`.
    """

    def __init__(self, config: LMConfig, product: Callable = jax.lax.dot_general, *, rngs: nnx.Rngs) -> None:
        self.config = config
        linear = partial(_linear, jnp.dtype(config.dtype), product, rngs)
        residual = (2 * config.layers) ** -0.5
        self.norm = RMSNorm(config.width, rngs=rngs)
        self.qkv = linear(config.width, 3 * config.width)
        self.out = linear(config.width, config.width, residual)
        self.ffn_norm = RMSNorm(config.width, rngs=rngs)
        self.gate_up = linear(config.width, 2 * config.ffn)
        self.down = linear(config.ffn, config.width, residual)

    def project(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(B, T, D) and (T,) to rotated queries, rotated keys and values, each (B, H, T, D / H)."""
        heads, base = self.config.heads, self.config.rope_base
        q, k, v = (split_heads(h, heads) for h in jnp.split(self.qkv(self.norm(x)), 3, axis=-1))
        return rotary(q, positions, base), rotary(k, positions, base), v

    def update(self, x: jax.Array, attended: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The residual stream after adding attention's output (B, H, T, D / H) and the feed-forward layer's."""
        keys = (None, None) if key is None else jax.random.split(key)
        x = x + dropout(self.out(merge_heads(attended)), self.config.dropout, keys[0])
        gate, up = jnp.split(self.gate_up(self.ffn_norm(x)), 2, axis=-1)
        return x + dropout(self.down(jax.nn.silu(gate) * up), self.config.dropout, keys[1])

    def __call__(
        self, x: jax.Array, positions: jax.Array, bias: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """One block over a whole sequence; `bias` (T, T) is additive."""
        return self.update(x, attend(*self.project(x, positions), bias), key)


class Group(nnx.Module):
    """What makes one position of several tokens, and several tokens of one position.

    `product` as in `Block`.
    """

    def __init__(self, config: LMConfig, product: Callable = jax.lax.dot_general, *, rngs: nnx.Rngs) -> None:
        width, linear = config.width, partial(_linear, jnp.dtype(config.dtype), product, rngs)
        self.merge_in = linear(config.tokens_per_pass * width, width)
        self.norm = RMSNorm(width, rngs=rngs)
        self.gate_up = linear(2 * width, 2 * width)
        self.down = linear(width, width)

    def merge(self, x: jax.Array) -> jax.Array:
        """Embeddings of tokens (B, N, D), N a multiple of n, to those of their groups (B, N / n, D)."""
        batch, length, width = x.shape
        merged = self.merge_in.in_features // width
        return self.merge_in(x.reshape(batch, length // merged, merged * width))

    def follow(self, x: jax.Array, drawn: jax.Array) -> jax.Array:
        """The stream (B, N, D) for a group's next token, given that for the last one and its embedding (B, N, D)."""
        gate, up = jnp.split(self.gate_up(jnp.concatenate([self.norm(x), drawn], axis=-1)), 2, axis=-1)
        return x + self.down(jax.nn.silu(gate) * up)


def init(config: LMConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters. Raises `UserError` if the heads do not divide the width evenly."""
    if config.width % (2 * config.heads):
        raise UserError(f"width {config.width} must be a multiple of twice the {config.heads} heads")
    keys = jax.random.split(key, 5)
    rows = config.prefix_levels * (config.prefix_codes + 1)
    params = {
        "prefix": jax.random.normal(keys[0], (rows, config.width)),
        "semantic": jax.random.normal(keys[1], (config.semantic_vocab, config.width)),
        "blocks": functional.init_stack(Block, config, key=keys[2], depth=config.layers),
        "norm": functional.init(RMSNorm, config.width, key=key),
        "head": jax.random.normal(keys[3], (config.width, config.semantic_vocab)) * config.width**-0.5,
    }
    if config.tokens_per_pass > 1:
        params["group"] = functional.init(Group, config, key=keys[4])
    if config.recall:
        params["recall"] = functional.init(Recall, config.width, config.dtype, key=keys[4])
    return params


def embed_prefix(
    params: Params, config: LMConfig, prefix_tokens: jax.Array, prefix_levels: jax.Array | None = None
) -> jax.Array:
    """Embeddings (B, P, D) of prefix tokens (B, P); levels >= `prefix_levels` (B,) become null (0: no prefix).

    A token below 0 is null too.
    """
    levels = jnp.arange(config.prefix_levels)
    if prefix_levels is not None:
        prefix_tokens = jnp.where(levels < prefix_levels[:, None], prefix_tokens, -1)
    prefix_tokens = jnp.where(prefix_tokens < 0, config.prefix_codes, prefix_tokens)
    return sharding.embed_lookup(
        params["prefix"].astype(config.dtype), prefix_tokens + levels * (config.prefix_codes + 1)
    )


def _recall(params: Params, config: LMConfig) -> Recall:
    return functional.bind(Recall, config.width, config.dtype, params=params["recall"])


def group(params: Params, config: LMConfig, product: Callable = jax.lax.dot_general) -> Group:
    """The `Group` of a network with several tokens a pass."""
    return functional.bind(Group, config, product, params=params["group"])


def embed(params: Params, config: LMConfig, tokens: jax.Array) -> jax.Array:
    """Embeddings (B, N, D) of semantic tokens (B, N), each by itself."""
    return sharding.embed_lookup(params["semantic"].astype(config.dtype), tokens)


def hear(
    params: Params,
    config: LMConfig,
    tokens: jax.Array,
    prefix: jax.Array,
    start: jax.Array | int,
    heard: Heard | None,
    product: Callable = jax.lax.dot_general,
) -> tuple[jax.Array, jax.Array | None, Heard | None]:
    """What the blocks read, (B, N / n, D), for semantic tokens start.. (B, N); recall's weights (B, H, N, T); `heard`.

    The prefix's embeddings (B, P, D) are added where the config says so.
    """
    x, weights = embed(params, config, tokens), None
    if config.tokens_per_pass > 1:
        x = group(params, config, product).merge(x)
    if heard is not None:
        recall = _recall(params, config)
        weights, heard = recall.look_back(x, start, heard)
        x = recall.hint(x, weights, heard)
    if config.prefix_everywhere:
        x = x + prefix.sum(axis=1, keepdims=True) * config.prefix_levels**-0.5
    return x, weights, heard


def nothing_heard(params: Params, config: LMConfig, prefix: jax.Array, places: int) -> Heard | None:
    """What may be recalled before the first of so many tokens; None without recall."""
    return _recall(params, config).begin(prefix, places) if config.recall else None


def before_any(weights: jax.Array) -> jax.Array:
    """Recall's weights (B, H, N, T) behind those, all zero, of the prefix's end, where no token was heard yet."""
    return jnp.pad(weights, ((0, 0), (0, 0), (1, 0), (0, 0)))


def head(
    params: Params, config: LMConfig, x: jax.Array, weights: jax.Array | None, tokens: jax.Array
) -> jax.Array:
    """Logits (B, N, vocab) from the stream (B, N, D), and from recall's weights (B, H, N, T) over tokens (B, T)."""
    h = functional.bind(RMSNorm, config.width, params=params["norm"])(x)
    scores = (h @ params["head"].astype(h.dtype)).astype(jnp.float32)
    if weights is None:
        return scores
    copied = _recall(params, config).point(h, weights)
    own = 1 - copied.sum(axis=-1, keepdims=True)
    again = copied @ jax.nn.one_hot(tokens, config.semantic_vocab)
    return jnp.log(own * jax.nn.softmax(scores) + again + 1e-9)


def causal_bias(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Additive bias (Q, K) that hides later keys, of positions (Q,) and (K,)."""
    return MASKED * (keys > queries[:, None])


def logits(
    params: Params,
    config: LMConfig,
    prefix_tokens: jax.Array,
    semantic_tokens: jax.Array,
    prefix_levels: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Teacher-forced logits (B, U, vocab) float32: entry u predicts `semantic_tokens[:, u]` from prefix and tokens < u.

    `prefix_tokens` (B, P) and `semantic_tokens` (B, U) are ints; `prefix_levels` (B,) keeps that many leading prefix
    levels of each item and nulls the others; `key` turns dropout on.
    """
    length, n = semantic_tokens.shape[1], config.tokens_per_pass
    tokens = jnp.pad(semantic_tokens, ((0, 0), (0, -length % n)))
    prefix = embed_prefix(params, config, prefix_tokens, prefix_levels)
    history = tokens[:, :-n]
    heard = nothing_heard(params, config, prefix, history.shape[1])
    x, weights, _ = hear(params, config, history, prefix, 0, heard)
    x = jnp.concatenate([prefix, x], axis=1)
    keys = None
    if key is not None:
        first, *rest = jax.random.split(key, 1 + config.layers)
        x, keys = dropout(x, config.dropout, first), jnp.stack(rest)
    positions = jnp.arange(x.shape[1])
    bias = causal_bias(positions, positions)
    blocks, inputs = params["blocks"], (positions, bias)
    x = functional.scan_blocks(
        Block, config, params=blocks, x=x, inputs=inputs, keys=keys, remat=config.remat
    )
    x = x[:, config.prefix_levels - 1 :]
    if n == 1:
        return head(params, config, x, None if weights is None else before_any(weights), history)
    scores = [head(params, config, x, None, history)]
    for j in range(1, n):
        x = group(params, config).follow(x, embed(params, config, tokens[:, j - 1 :: n]))
        scores.append(head(params, config, x, None, history))
    return jnp.stack(scores, axis=2).reshape(*tokens.shape, -1)[:, :length]
