"""The semantic language model: twelve prefix tokens to 25 Hz semantic tokens (MeLoDy section 3.1, LLaMA shaped).

A decoder-only transformer (RoPE, RMSNorm, SwiGLU) over the sequence [P prefix tokens][U semantic tokens]. Every prefix
level has its own embedding table with one more entry, the learned null: replacing all levels by their null gives the
unconditional model for classifier-free guidance, replacing the deep ones a coarser description of the same clip.
The head covers the semantic ids only. Positions enter through RoPE alone, so windows may start anywhere in a piece.

B batch, P prefix levels, U semantic tokens, T = P + U positions, H heads, D channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from melody_jax.errors import UserError
from melody_jax.models import few_rows, functional
from melody_jax.models.functional import Params, Remat
from melody_jax.models.layers import MASKED, RMSNorm, attend, merge_heads, rotary, split_heads
from melody_jax.models.recall import Heard, Recall

Cache = tuple[jax.Array, jax.Array]
Caches = Any
"""A list of one cache a block, or one of all blocks' stacked."""
State = tuple[jax.Array, Heard | None, Caches]
"""Of decoding: tokens (B, length), what may be recalled, and the caches."""


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
    dropout: float = 0.0
    """Probability of zeroing a channel of an embedding or of a residual update, in training only."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies; positions are token indices."""
    dtype: str = "float32"
    """Compute dtype of the matrix products; norms, softmax and logits are float32."""
    remat: Remat = "none"
    """What the backward pass computes again: "none", "dots" or "blocks" (models/functional.py)."""


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


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout with 16-bit draws; `key` None or rate 0 returns x."""
    if key is None or rate == 0.0:
        return x
    kept = jax.random.bits(key, x.shape, jnp.uint16) >= round(rate * 65536)
    return x * (kept.astype(x.dtype) / (1.0 - rate))


class Block(nnx.Module):
    """Pre-norm attention and SwiGLU. Split in two halves around the attention so that cached decoding shares it.

    `product` is what multiplies with the weights, in place of `jax.lax.dot_general`.
    """

    def __init__(self, config: LMConfig, product: Callable = jax.lax.dot_general, *, rngs: nnx.Rngs) -> None:
        self.config = config

        def linear(inputs: int, outputs: int, gain: float = 1.0) -> nnx.Linear:
            init, dtype = nnx.initializers.normal(gain * inputs**-0.5), jnp.dtype(config.dtype)
            return nnx.Linear(
                inputs, outputs, use_bias=False, kernel_init=init, dtype=dtype, dot_general=product, rngs=rngs
            )

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

    def __call__(self, x: jax.Array, positions: jax.Array, bias: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """One block over a whole sequence; `bias` (T, T) is additive."""
        return self.update(x, attend(*self.project(x, positions), bias), key)


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
    return functional.look_up(params["prefix"].astype(config.dtype), prefix_tokens + levels * (config.prefix_codes + 1))


def _recall(params: Params, config: LMConfig) -> Recall:
    return functional.bind(Recall, config.width, config.dtype, params=params["recall"])


def _hear(
    params: Params, config: LMConfig, tokens: jax.Array, prefix: jax.Array, start: jax.Array | int, heard: Heard | None
) -> tuple[jax.Array, jax.Array | None, Heard | None]:
    """Embeddings (B, N, D) of semantic tokens start.. (B, N), recall's weights (B, H, N, T), and `heard` with them.

    The prefix's embeddings (B, P, D) are added where the config says so.
    """
    x, weights = functional.look_up(params["semantic"].astype(config.dtype), tokens), None
    if heard is not None:
        recall = _recall(params, config)
        weights, heard = recall.look_back(x, start, heard)
        x = recall.hint(x, weights, heard)
    if config.prefix_everywhere:
        x = x + prefix.sum(axis=1, keepdims=True) * config.prefix_levels**-0.5
    return x, weights, heard


def _nothing_heard(params: Params, config: LMConfig, prefix: jax.Array, places: int) -> Heard | None:
    return _recall(params, config).begin(prefix, places) if config.recall else None


def _before_any(weights: jax.Array) -> jax.Array:
    """Recall's weights (B, H, N, T) behind those, all zero, of the prefix's end, where no token was heard yet."""
    return jnp.pad(weights, ((0, 0), (0, 0), (1, 0), (0, 0)))


def _head(params: Params, config: LMConfig, x: jax.Array, weights: jax.Array | None, tokens: jax.Array) -> jax.Array:
    """Logits (B, N, vocab) from the stream (B, N, D), and from recall's weights (B, H, N, T) over tokens (B, T)."""
    h = functional.bind(RMSNorm, config.width, params=params["norm"])(x)
    scores = (h @ params["head"].astype(h.dtype)).astype(jnp.float32)
    if weights is None:
        return scores
    copied = _recall(params, config).point(h, weights)
    own = 1 - copied.sum(axis=-1, keepdims=True)
    again = copied @ jax.nn.one_hot(tokens, config.semantic_vocab)
    return jnp.log(own * jax.nn.softmax(scores) + again + 1e-9)


def _causal_bias(queries: jax.Array, keys: jax.Array) -> jax.Array:
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
    prefix = embed_prefix(params, config, prefix_tokens, prefix_levels)
    history = semantic_tokens[:, :-1]
    heard = _nothing_heard(params, config, prefix, history.shape[1])
    x, weights, _ = _hear(params, config, history, prefix, 0, heard)
    x = jnp.concatenate([prefix, x], axis=1)
    keys = None
    if key is not None:
        first, *rest = jax.random.split(key, 1 + config.layers)
        x, keys = dropout(x, config.dropout, first), jnp.stack(rest)
    positions = jnp.arange(x.shape[1])
    bias = _causal_bias(positions, positions)
    blocks, inputs = params["blocks"], (positions, bias)
    x = functional.scan_blocks(Block, config, params=blocks, x=x, inputs=inputs, keys=keys, remat=config.remat)
    weights = None if weights is None else _before_any(weights)
    return _head(params, config, x[:, config.prefix_levels - 1 :], weights, history)


def _cached(
    blocks: list[Params] | Params,
    config: LMConfig,
    x: jax.Array,
    start: jax.Array | int,
    caches: Caches,
    product: Callable = jax.lax.dot_general,
) -> tuple[jax.Array, Caches]:
    """Runs embeddings (B, N, D) at positions start.. against the caches; the stream (B, 1, D) after the last of them.

    A list of blocks is unrolled, stacked ones are scanned. A cache is keys (B * H, D / H, T) and values
    (B * H, T, D / H): with any other shape XLA:CPU copies or transposes both at every step.
    """
    positions = start + jnp.arange(x.shape[1])
    bias = _causal_bias(positions, jnp.arange(jax.tree.leaves(caches)[0].shape[-1]))

    def apply(x: jax.Array, layer: tuple[Params, Cache]) -> tuple[jax.Array, Cache]:
        block_params, (k_cache, v_cache) = layer
        block = functional.bind(Block, config, product, params=block_params)
        q, k, v = (h.reshape(-1, *h.shape[2:]) for h in block.project(x, positions))
        k_cache = jax.lax.dynamic_update_slice_in_dim(k_cache, k.swapaxes(1, 2), start, axis=2)
        v_cache = jax.lax.dynamic_update_slice_in_dim(v_cache, v, start, axis=1)
        scores = (q @ k_cache).astype(jnp.float32) * q.shape[-1] ** -0.5 + bias
        attended = jax.nn.softmax(scores).astype(v.dtype) @ v_cache
        return block.update(x, attended.reshape(-1, config.heads, *attended.shape[1:])), (k_cache, v_cache)

    if isinstance(blocks, list):
        updated = []
        for layer in zip(blocks, caches, strict=True):
            x, cache = apply(x, layer)
            updated.append(cache)
        return x[:, -1:], updated
    x, updated = jax.lax.scan(apply, x, (blocks, caches))
    return x[:, -1:], updated


CANDIDATES = 256
"""Best ids that are looked at where `top_k` is no larger; beyond it all are."""


def sample_token(
    key: jax.Array,
    scores: jax.Array,
    temperature: jax.Array | float,
    top_k: jax.Array | int,
    top_p: jax.Array | float,
    candidates: int = CANDIDATES,
) -> jax.Array:
    """Draws one id from logits (vocab,): the `top_k` best, of those the smallest set holding `top_p` of their mass.

    Temperature 0 is the best id. Ids beyond the two limits are never drawn. `candidates` bounds `top_k`. The noise
    belongs to the id, not to its rank: where rounding swaps two neighbours, the draw stays.
    """
    best, ids = jax.lax.top_k(scores, min(candidates, scores.shape[-1]))
    rank = jnp.arange(best.shape[0])
    kept = best + MASKED * (rank >= top_k)
    probabilities = jax.nn.softmax(kept / jnp.maximum(temperature, 1e-6))
    better = probabilities @ (rank[:, None] < rank).astype(jnp.float32)  # `cumsum` takes 20x as long on XLA:CPU
    noise = jax.random.gumbel(key, scores.shape)[ids]
    noisy = kept + temperature * noise + MASKED * ((better >= top_p) & (rank > 0))
    return ids[jnp.argmax(noisy)].astype(jnp.int32)


@partial(jax.jit, static_argnames=("config", "length", "candidates"))
def _generate(
    params: Params,
    config: LMConfig,
    prefix: jax.Array,
    keys: jax.Array,
    given: jax.Array,
    known: jax.Array,
    length: int,
    candidates: int,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    guidance_scale: jax.Array,
) -> jax.Array:
    """`generate` on prefix embeddings (B, P, D), or (2B, P, D) with the guiding half second; numbers are (B,).

    A CPU reads unrolled blocks several times as fast as it does slices of stacked ones.
    """
    arrays = (params, prefix, keys, given, known, temperature, top_k, top_p, guidance_scale)
    unrolled, scanned = (partial(_decode, config, length, candidates, unrolled) for unrolled in (True, False))
    return jax.lax.platform_dependent(*arrays, cpu=unrolled, default=scanned)


def _decode(
    config: LMConfig,
    length: int,
    candidates: int,
    unrolled: bool,
    params: Params,
    prefix: jax.Array,
    keys: jax.Array,
    given: jax.Array,
    known: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    guidance_scale: jax.Array,
) -> jax.Array:
    """`_generate` with its blocks unrolled or scanned."""
    batch, begun = given.shape
    copies = prefix.shape[0] // batch
    rows, depth, positions = prefix.shape[0] * config.heads, config.width // config.heads, config.prefix_levels + length
    empty = (jnp.zeros((rows, depth, positions), config.dtype), jnp.zeros((rows, positions, depth), config.dtype))
    caches = jax.tree.map(lambda cache: jnp.stack([cache] * config.layers), empty)
    blocks, product = params["blocks"], jax.lax.dot_general
    if unrolled:
        blocks = functional.unstack(blocks, config.layers)
        if prefix.shape[0] <= few_rows.FEW:
            blocks, product = [few_rows.outputs_first(block) for block in blocks], few_rows.product

    def draw(scores: jax.Array, index: jax.Array | int) -> jax.Array:
        if copies == 2:
            wanted, unwanted = jnp.split(scores, 2)
            scores = unwanted + guidance_scale[:, None] * (wanted - unwanted)
        item_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        sample = jax.vmap(partial(sample_token, candidates=candidates))
        drawn = sample(item_keys, scores, temperature, top_k, top_p)
        there = jax.lax.dynamic_index_in_dim(known, index, axis=1, keepdims=False)
        return jnp.where(there < 0, drawn, there)

    def advance(index: jax.Array | int, state: State, new: jax.Array, begin: bool) -> State:
        """Hears `new` (B, N), the latest of the tokens before `index`, and draws the one there."""
        tokens, heard, caches = state
        first = index - new.shape[1]
        x, weights, heard = _hear(params, config, jnp.tile(new, (copies, 1)), prefix, first, heard)
        if begin:  # once and of many rows: scanned everywhere
            x, caches = _cached(params["blocks"], config, jnp.concatenate([prefix, x], axis=1), 0, caches)
            caches = functional.unstack(caches, config.layers) if unrolled else caches
        else:
            x, caches = _cached(blocks, config, x, config.prefix_levels + first, caches, product)
        weights = None if weights is None else _before_any(weights)[:, :, -1:]
        scores = _head(params, config, x, weights, jnp.tile(tokens, (copies, 1)))[:, 0]
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, draw(scores, index)[:, None], index, axis=1)
        return tokens, heard, caches

    def step(index: jax.Array, state: State) -> State:
        return advance(index, state, jax.lax.dynamic_slice_in_dim(state[0], index - 1, 1, axis=1), False)

    tokens = jnp.zeros((batch, length), jnp.int32).at[:, :begun].set(given)
    state = tokens, _nothing_heard(params, config, prefix, length), caches
    return jax.lax.fori_loop(begun + 1, length, step, advance(begun, state, given, True))[0]


def generate(
    params: Params,
    config: LMConfig,
    prefix_tokens: jax.Array,
    keys: jax.Array,
    length: int,
    temperature: jax.Array | float = 1.0,
    top_k: jax.Array | int = 250,
    top_p: jax.Array | float = 1.0,
    guidance_scale: jax.Array | float = 1.0,
    given: jax.Array | None = None,
    negative_prefix_tokens: jax.Array | None = None,
    candidates: int = CANDIDATES,
    known: jax.Array | None = None,
) -> jax.Array:
    """Samples semantic tokens (B, length) int32 after prefix tokens (B, P), beginning with `given` (B, G), G < length.

    `keys` (B,) are PRNG keys, one an item: token u of an item is drawn with `fold_in(key, u)`, whatever the batch.
    `guidance_scale` g draws from null + g (prefix - null) in logits, at twice the cost unless it is the number 1;
    the null side is the learned null prefix, or `negative_prefix_tokens` (B, P) if given, in which -1 is null.
    `temperature` >= 0, `top_k` >= 1, `top_p` in (0, 1] and `guidance_scale` may be traced, each one number or (B,);
    at most the `candidates` best ids are drawn from. `known` (B, length): tokens that are there already, anywhere; -1
    is one to draw. What is drawn follows from what comes before it only. Raises `UserError` if the prefix or `given`
    has the wrong length.
    """
    batch = prefix_tokens.shape[0]
    start = jnp.zeros((batch, 0), jnp.int32) if given is None else given
    if not start.shape[1] < length:
        raise UserError(f"length {length} must exceed the {start.shape[1]} tokens given")
    if prefix_tokens.shape[1] != config.prefix_levels:
        raise UserError(f"a prefix of {prefix_tokens.shape[1]} tokens, this model needs {config.prefix_levels}")
    prefix = embed_prefix(params, config, prefix_tokens)
    if isinstance(guidance_scale, jax.Array) or guidance_scale != 1.0:
        other = jnp.full_like(prefix_tokens, -1) if negative_prefix_tokens is None else negative_prefix_tokens
        prefix = jnp.concatenate([prefix, embed_prefix(params, config, other)])
    numbers = (
        jnp.broadcast_to(jnp.asarray(n, jnp.float32), batch) for n in (temperature, top_k, top_p, guidance_scale)
    )
    known = jnp.full((batch, length), -1) if known is None else known
    return _generate(params, config, prefix, keys, start, known, length, candidates, *numbers)
