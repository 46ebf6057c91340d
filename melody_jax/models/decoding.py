"""Drawing semantic tokens from the language model one after the other, in one compiled loop with cached attention.

The loop reads all weights for every pass, so its floor on a CPU is their bytes over what memory gives: blocks are
unrolled there and large matrices lie output channel first (`few_rows`). Elsewhere the blocks are scanned.

B batch, P prefix levels, N new tokens, H heads, D channels, T places.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from melody_jax.errors import UserError
from melody_jax.models import cpu_matvec, functional, lm
from melody_jax.models.functional import Params
from melody_jax.models.layers import MASKED
from melody_jax.models.lm import LMConfig
from melody_jax.models.recall import Heard

Cache = tuple[jax.Array, jax.Array]
Caches = Any
"""A list of one cache a block, or one of all blocks' stacked."""
State = tuple[jax.Array, Heard | None, Caches]
"""Tokens (B, length), what may be recalled, and the caches."""


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
    bias = lm.causal_bias(positions, jnp.arange(jax.tree.leaves(caches)[0].shape[-1]))

    def apply(x: jax.Array, layer: tuple[Params, Cache]) -> tuple[jax.Array, Cache]:
        block_params, (k_cache, v_cache) = layer
        block = functional.bind(lm.Block, config, product, params=block_params)
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
    better = probabilities @ (rank[:, None] < rank).astype(
        jnp.float32
    )  # `cumsum` takes 20x as long on XLA:CPU
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
    """`_generate` with its blocks unrolled or scanned; `given` and `length` are whole passes."""
    (batch, begun), per_pass = given.shape, config.tokens_per_pass
    copies = prefix.shape[0] // batch
    rows, depth, positions = (
        prefix.shape[0] * config.heads,
        config.width // config.heads,
        config.prefix_levels + length // per_pass,
    )
    empty = (
        jnp.zeros((rows, depth, positions), config.dtype),
        jnp.zeros((rows, positions, depth), config.dtype),
    )
    caches = jax.tree.map(lambda cache: jnp.stack([cache] * config.layers), empty)
    blocks, product = params["blocks"], jax.lax.dot_general
    if unrolled:
        blocks = functional.unstack(blocks, config.layers)
        if prefix.shape[0] <= cpu_matvec.FEW:
            blocks, product = [cpu_matvec.outputs_first(block) for block in blocks], cpu_matvec.product
            if per_pass > 1:
                params = params | {"group": cpu_matvec.outputs_first(params["group"])}

    def draw(scores: jax.Array, index: jax.Array | int) -> jax.Array:
        if copies == 2:
            wanted, unwanted = jnp.split(scores, 2)
            scores = unwanted + guidance_scale[:, None] * (wanted - unwanted)
        item_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        sample = jax.vmap(partial(sample_token, candidates=candidates))
        drawn = sample(item_keys, scores, temperature, top_k, top_p)
        there = jax.lax.dynamic_index_in_dim(known, index, axis=1, keepdims=False)
        return jnp.where(there < 0, drawn, there)

    def advance(pass_: jax.Array | int, state: State, new: jax.Array, begin: bool) -> State:
        """Hears `new` (B, N), the latest of the tokens before those of this pass, and draws these."""
        tokens, heard, caches = state
        index = pass_ * per_pass
        first = index - new.shape[1]
        x, weights, heard = lm.hear(params, config, jnp.tile(new, (copies, 1)), prefix, first, heard, product)
        if begin:  # once and of many rows: scanned everywhere
            x, caches = _cached(params["blocks"], config, jnp.concatenate([prefix, x], axis=1), 0, caches)
            caches = functional.unstack(caches, config.layers) if unrolled else caches
        else:
            x, caches = _cached(blocks, config, x, config.prefix_levels + first // per_pass, caches, product)
        weights = None if weights is None else lm.before_any(weights)[:, :, -1:]
        for j in range(per_pass):
            if j > 0:
                last = jnp.tile(tokens, (copies, 1))[:, None, index + j - 1]
                x = lm.group(params, config, product).follow(x, lm.embed(params, config, last))
            scores = lm.head(params, config, x, weights, jnp.tile(tokens, (copies, 1)))[:, 0]
            drawn = draw(scores, index + j)[:, None]
            tokens = jax.lax.dynamic_update_slice_in_dim(tokens, drawn, index + j, axis=1)
        return tokens, heard, caches

    def step(pass_: jax.Array, state: State) -> State:
        latest = jax.lax.dynamic_slice_in_dim(state[0], (pass_ - 1) * per_pass, per_pass, axis=1)
        return advance(pass_, state, latest, False)

    tokens = jnp.zeros((batch, length), jnp.int32).at[:, :begun].set(given)
    state = tokens, lm.nothing_heard(params, config, prefix, length), caches
    first = begun // per_pass
    return jax.lax.fori_loop(first + 1, length // per_pass, step, advance(first, state, given, True))[0]


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
        raise UserError(
            f"a prefix of {prefix_tokens.shape[1]} tokens, this model needs {config.prefix_levels}"
        )
    prefix = lm.embed_prefix(params, config, prefix_tokens)
    if isinstance(guidance_scale, jax.Array) or guidance_scale != 1.0:
        other = jnp.full_like(prefix_tokens, -1) if negative_prefix_tokens is None else negative_prefix_tokens
        prefix = jnp.concatenate([prefix, lm.embed_prefix(params, config, other)])
    numbers = (
        jnp.broadcast_to(jnp.asarray(n, jnp.float32), batch)
        for n in (temperature, top_k, top_p, guidance_scale)
    )
    known = jnp.full((batch, length), -1) if known is None else known
    known = known.at[:, : start.shape[1]].set(start)  # those that do not fill a pass are drawn around
    n = config.tokens_per_pass
    start, whole = start[:, : start.shape[1] // n * n], length + -length % n
    known = jnp.pad(known, ((0, 0), (0, whole - length)), constant_values=-1)
    return _generate(params, config, prefix, keys, start, known, whole, candidates, *numbers)[:, :length]
