"""Sampling semantic tokens from the language model one after the other, in one compiled loop with cached attention.

The loop reads all weights in every pass, so on a CPU a pass takes at least their size divided by the memory
bandwidth.
There the blocks are unrolled, because slices of stacked weights are several times slower to read, and large matrices
are stored output channel first (`models/platform.py`). On other platforms the blocks are scanned.

B batch, R = B, 2 B or 3 B rows (see `Inputs.prefix`), P prefix levels, N tokens of one call, U sampled tokens, H heads,
D channels, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from melody_jax.errors import UserError
from melody_jax.models import functional, lm, platform
from melody_jax.models.functional import Params
from melody_jax.models.layers import MASKED
from melody_jax.models.lm import LM, Block
from melody_jax.models.lm_config import LMConfig
from melody_jax.models.platform import KVCache
from melody_jax.models.recall import RecallState

Caches = Any
"""A list with one `KVCache` per block, or one `KVCache` in which those of all blocks are stacked."""
Number = Num[Array, "..."] | float | int
"""One number, or one per item."""

CANDIDATES = 256
"""Number of best ids that sampling considers, an upper bound of `top_k`."""


class SamplingParams(NamedTuple):
    """How tokens are drawn from logits, for each item; see `generate`."""

    temperature: Float[Array, "..."]
    top_k: Float[Array, "..."]
    top_p: Float[Array, "..."]
    guidance_scale: Float[Array, "..."]
    control_scale: Float[Array, "..."]


class Inputs(NamedTuple):
    """Arrays that `generate` prepares for the compiled loop."""

    prefix: Float[Array, "R P D"]
    """Embeddings of the prefix; after them those of the null or negative prefix, with guidance; after these those of
    the prefix without its control tokens, if `control_scale` is in use."""
    keys: Key[Array, " B"]
    """One key per item."""
    primer: Int[Array, "B G"]
    """Tokens that the sequence begins with, a multiple of the tokens per pass."""
    fixed: Int[Array, "B U"]
    """Tokens that are given; -1 where one is drawn."""
    sampling: SamplingParams
    """One number per item."""
    melody: Int[Array, "R M"] | None = None
    """Melody tokens, for a network that follows them; with guidance, those of every branch."""


class LoopState(NamedTuple):
    """State passed from one pass to the next."""

    tokens: Int[Array, "B U"]
    recall: RecallState | None
    caches: Caches
    passes: Int[Array, ""]
    """Passes through the blocks so far."""


class Generated(NamedTuple):
    """What `generate` returns."""

    tokens: Int[Array, "B U"]
    """The sequences, the primer's tokens included."""
    passes: Int[Array, ""]
    """Passes through the blocks, as the loop counted them; guidance's second branch is in the same pass."""


def run_cached(
    blocks: list[Block] | Block,
    x: Float[Array, "R N D"],
    start: Int[Array, ""] | int,
    caches: Caches,
) -> tuple[Float[Array, "R 1 D"], Caches]:
    """Runs the embeddings at positions start.. against the caches; the stream after the last of them, and the caches.

    A list of blocks is unrolled, stacked blocks (`functional.stack`) are scanned.
    """
    positions = start + jnp.arange(x.shape[1])
    length = jax.tree.leaves(caches)[0].shape[-1]
    bias = lm.causal_bias(positions, jnp.arange(length))

    def apply(x: jax.Array, layer: tuple[Block, KVCache]) -> tuple[jax.Array, KVCache]:
        block, cache = layer
        q, k, v = block.project(x, positions)
        attended, cache = platform.attend_cached(q, k, v, bias, cache, start)
        return block.update(x, attended), cache

    if isinstance(blocks, list):
        updated = []
        for layer in zip(blocks, caches, strict=True):
            x, cache = apply(x, layer)
            updated.append(cache)
        return x[:, -1:], updated
    x, updated = jax.lax.scan(apply, x, (blocks, caches))
    return x[:, -1:], updated


def sample_token(
    key: Key[Array, ""],
    logits: Float[Array, " V"],
    temperature: Number,
    top_k: Number,
    top_p: Number,
    candidates: int = CANDIDATES,
) -> Int[Array, ""]:
    """Draws one id from the `top_k` best ids, restricted to the smallest set of them that holds `top_p` of their mass.

    Temperature 0 gives the best id. Ids outside the two limits are never drawn. `candidates` bounds `top_k`. The noise
    belongs to the id, not to its rank: if rounding swaps two neighbours, the draw stays the same.
    """
    best, ids = jax.lax.top_k(logits, min(candidates, logits.shape[-1]))
    rank = jnp.arange(best.shape[0])
    top_k_logits = best + MASKED * (rank >= top_k)
    probabilities = jax.nn.softmax(top_k_logits / jnp.maximum(temperature, 1e-6))
    # `cumsum` takes 20 times as long on XLA:CPU
    mass_of_better = probabilities @ (rank[:, None] < rank).astype(jnp.float32)
    noise = jax.random.gumbel(key, logits.shape)[ids]
    scores = top_k_logits + temperature * noise + MASKED * ((mass_of_better >= top_p) & (rank > 0))
    return ids[jnp.argmax(scores)].astype(jnp.int32)


class _Decoder:
    """The network prepared for the loop, and the steps of the loop.

    `unrolled` chooses the form for a CPU.
    """

    def __init__(
        self, config: LMConfig, candidates: int, unrolled: bool, params: Params, inputs: Inputs
    ) -> None:
        rows = inputs.prefix.shape[0]
        self.config = config
        self.candidates = candidates
        self.unrolled = unrolled
        self.inputs = inputs
        self.branches = rows // inputs.primer.shape[0]
        self.network = functional.bind(LM, config, params=params)
        self.melody = None
        if config.melody_span:
            self.melody = self.network.embed_melody(inputs.melody, rows, inputs.fixed.shape[1])
        self.prefill_blocks = self.network.blocks
        self.step_blocks: list[Block] | Block = self.prefill_blocks
        if unrolled and rows <= platform.MATVEC_ROWS:
            params = params | {
                name: platform.matvec_layout(params[name]) for name in ("group", "head") if name in params
            }
            self.network = functional.bind(LM, config, platform.matvec, params=params)
            blocks = functional.unstack(self.network.blocks, config.layers)
            self.step_blocks = [platform.matvec_layout(block) for block in blocks]
        elif unrolled:
            self.step_blocks = functional.unstack(self.network.blocks, config.layers)

    def init_state(self, length: int) -> LoopState:
        """The state before the first pass: the primer's tokens; recall and caches are empty."""
        config = self.config
        primer = self.inputs.primer
        tokens = jnp.zeros((len(primer), length), jnp.int32).at[:, : primer.shape[1]].set(primer)
        positions = config.prefix_length + length // config.tokens_per_pass
        head_width = config.width // config.heads
        cache = platform.init_cache(
            len(self.inputs.prefix), config.heads, positions, head_width, config.dtype
        )
        caches = jax.tree.map(lambda leaf: jnp.stack([leaf] * config.layers), cache)
        recall = self.network.init_recall(self.inputs.prefix, length)
        return LoopState(tokens, recall, caches, jnp.int32(0))

    def tile(self, tokens: jax.Array) -> jax.Array:
        """Tokens (B, N) for every row (R, N)."""
        return jnp.tile(tokens, (self.branches, 1))

    def with_melody(self, x: jax.Array, first: int, token: jax.Array | int) -> jax.Array:
        """The stream (R, N, D) with the melody added from position `first` on, which predicts this token."""
        if self.melody is None:
            return x
        added = jax.lax.dynamic_slice_in_dim(self.melody, token, x.shape[1] - first, axis=1)
        return x.at[:, first:].add(added)

    def draw(self, logits: jax.Array, index: jax.Array | int) -> jax.Array:
        """Token `index` of each item (B,), from logits (R, V) or from the fixed tokens."""
        sampling = self.inputs.sampling
        if self.branches > 1:
            prompted, null, *uncontrolled = jnp.split(logits, self.branches)
            logits = null + sampling.guidance_scale[:, None] * (prompted - null)
            for other in uncontrolled:
                logits += (sampling.control_scale[:, None] - 1) * (prompted - other)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(self.inputs.keys)
        sample = jax.vmap(partial(sample_token, candidates=self.candidates))
        drawn = sample(keys, logits, sampling.temperature, sampling.top_k, sampling.top_p)
        fixed = jax.lax.dynamic_index_in_dim(self.inputs.fixed, index, axis=1, keepdims=False)
        return jnp.where(fixed < 0, drawn, fixed)

    def run_pass(
        self, index: jax.Array | int, state: LoopState, latest: jax.Array, is_prefill: bool
    ) -> LoopState:
        """Reads `latest` (B, N), the last tokens before those of pass `index`, and draws the tokens of the pass."""
        config = self.config
        tokens, recall, caches, passes = state
        position = index * config.tokens_per_pass
        start = position - latest.shape[1]
        prefix = self.inputs.prefix
        x, weights, recall = self.network.embed_with_recall(self.tile(latest), prefix, start, recall)
        if is_prefill:  # computes many rows once, so it is scanned on every platform
            x = jnp.concatenate([prefix, x], axis=1)
            x = self.with_melody(x, config.prefix_length - 1, 0)
            x, caches = run_cached(self.prefill_blocks, x, 0, caches)
            caches = functional.unstack(caches, config.layers) if self.unrolled else caches
        else:
            cache_start = config.prefix_length + start // config.tokens_per_pass
            x = self.with_melody(x, 0, position)
            x, caches = run_cached(self.step_blocks, x, cache_start, caches)
        weights = None if weights is None else lm.pad_prefix(weights)[:, :, -1:]
        for j in range(config.tokens_per_pass):
            if j > 0 and self.network.group is not None:
                previous = self.tile(tokens)[:, None, position + j - 1]
                x = self.network.group.advance(x, self.network.embed(previous))
            logits = self.network.predict(x, weights, self.tile(tokens), position + j)[:, 0]
            drawn = self.draw(logits, position + j)[:, None]
            tokens = jax.lax.dynamic_update_slice_in_dim(tokens, drawn, position + j, axis=1)
        return LoopState(tokens, recall, caches, passes + 1)


def decode(
    config: LMConfig, length: int, candidates: int, unrolled: bool, params: Params, inputs: Inputs
) -> Generated:
    """The loop of `generate` with unrolled or scanned blocks; `length` is a multiple of the tokens per pass."""
    per_pass = config.tokens_per_pass
    decoder = _Decoder(config, candidates, unrolled, params, inputs)

    def step(index: jax.Array, state: LoopState) -> LoopState:
        latest = jax.lax.dynamic_slice_in_dim(state.tokens, (index - 1) * per_pass, per_pass, axis=1)
        return decoder.run_pass(index, state, latest, is_prefill=False)

    first = inputs.primer.shape[1] // per_pass
    state = decoder.run_pass(first, decoder.init_state(length), inputs.primer, is_prefill=True)
    state = jax.lax.fori_loop(first + 1, length // per_pass, step, state)
    return Generated(state.tokens, state.passes)


@partial(jax.jit, static_argnames=("config", "length", "candidates"))
def _decode_on_platform(
    params: Params, config: LMConfig, inputs: Inputs, length: int, candidates: int
) -> Generated:
    forms: list[Callable[..., Generated]] = [
        partial(decode, config, length, candidates, unrolled) for unrolled in (True, False)
    ]
    return platform.on_cpu_or_else(*forms, params, inputs)


def generate(
    params: Params,
    config: LMConfig,
    prefix_tokens: Int[Array, "B _"],
    keys: Key[Array, " B"],
    length: int,
    temperature: Number = 1.0,
    top_k: Number = 250,
    top_p: Number = 1.0,
    guidance_scale: Number = 1.0,
    primer: Int[Array, "B G"] | None = None,
    negative_prefix_tokens: Int[Array, "B _"] | None = None,
    candidates: int = CANDIDATES,
    fixed: Int[Array, "B U"] | None = None,
    control_scale: Number = 1.0,
    melody: Int[Array, "B M"] | None = None,
) -> Generated:
    """Samples U = `length` semantic tokens after prefix tokens, and counts the passes.

    Args:
        params: The network's parameters.
        config: Its shape.
        prefix_tokens: Tokens of each prefix level, and the control tokens of a model that has them, or not; of a model
            with a condition all of them, and its tokens.
        keys: PRNG keys, one per item. Token u is drawn with `fold_in(key, u)`, so the batch changes no item's draws.
        length: Tokens to return, the primer's included.
        temperature: 0 or more, one number or one per item, like the other numbers; all may be traced.
        top_k: At least 1; values above `candidates` act as `candidates`.
        top_p: In (0, 1].
        guidance_scale: g draws from null + g (prefix - null) in logits, at twice the cost unless it is the number 1.
        primer: Tokens that the sequence begins with, fewer than `length`.
        negative_prefix_tokens: Replaces the learned null prefix in guidance; -1 is null. By default a condition stays.
        candidates: Number of best ids that sampling looks at.
        fixed: Tokens that are given, at any position; -1 where one is drawn. A draw depends only on earlier tokens.
        control_scale: c adds (c - 1) (prefix - prefix without its control tokens) to the guided logits (two conditions
            with a scale each: arXiv 2206.01714); three times the cost of no guidance unless it is the number 1.
        melody: Melody tokens for a network that follows them, -1 where there is none. Guidance leads away from none.

    Raises:
        UserError: the prefix or the primer has the wrong length.
    """
    batch = prefix_tokens.shape[0]
    primer = jnp.zeros((batch, 0), jnp.int32) if primer is None else primer
    _check_lengths(config, prefix_tokens.shape[1], primer.shape[1], length)
    branches = [prefix_tokens]
    if _in_use(guidance_scale) or _in_use(control_scale):
        null = prefix_tokens.at[:, : config.prompt_length].set(-1)
        branches.append(null if negative_prefix_tokens is None else negative_prefix_tokens)
    if _in_use(control_scale):
        branches.append(prefix_tokens.at[:, config.prefix_levels : config.prompt_length].set(-1))
    prefix = jnp.concatenate([lm.embed_prefix(params, config, branch) for branch in branches])
    sampling = _per_item(batch, temperature, top_k, top_p, guidance_scale, control_scale)
    padded_length = length + -length % config.tokens_per_pass
    fixed = _merge_fixed(primer, fixed, length, padded_length)
    primer = primer[:, : primer.shape[1] - primer.shape[1] % config.tokens_per_pass]
    if melody is not None:
        melody = jnp.concatenate([melody, jnp.full_like(melody, -1), melody][: len(branches)])
    inputs = Inputs(prefix, keys, primer, fixed, sampling, melody)
    written = _decode_on_platform(params, config, inputs, padded_length, candidates)
    return written._replace(tokens=written.tokens[:, :length])


def _per_item(batch: int, *settings: Number) -> SamplingParams:
    return SamplingParams(*(jnp.broadcast_to(jnp.asarray(number, jnp.float32), batch) for number in settings))


def _check_lengths(config: LMConfig, prefix: int, primer: int, length: int) -> None:
    if not primer < length:
        raise UserError(f"length {length} must exceed the {primer} tokens of the primer")
    allowed = {config.given_length} | (set() if config.condition else {config.prefix_levels})
    if prefix not in allowed:
        raise UserError(f"the prefix has {prefix} tokens: this model needs {config.given_length}")


def _in_use(scale: Number) -> bool:
    """Whether a scale may differ from 1."""
    return isinstance(scale, jax.Array) or scale != 1.0


def _merge_fixed(primer: jax.Array, fixed: jax.Array | None, length: int, padded_length: int) -> jax.Array:
    """The fixed tokens (B, padded_length), including the primer, the last tokens of which may not fill a pass."""
    fixed = jnp.full((len(primer), length), -1) if fixed is None else fixed
    fixed = fixed.at[:, : primer.shape[1]].set(primer)
    return jnp.pad(fixed, ((0, 0), (0, padded_length - length)), constant_values=-1)
