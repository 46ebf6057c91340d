"""The semantic language model: continues twelve prefix tokens with 25 Hz semantic tokens.

MeLoDy, arXiv 2305.15719, section 3.1; the blocks are those of LLaMA.

A decoder-only transformer (RoPE, RMSNorm, SwiGLU) over the sequence [P prefix tokens][U semantic tokens]. Every prefix
level has its own embedding table with one more entry, the learned null: replacing all levels by their null gives the
unconditional model for classifier-free guidance; replacing only the deep levels gives a coarser description of the
clip. The head covers the semantic ids only. Positions enter only through RoPE, so windows may start anywhere in a
piece.

With `tokens_per_pass` n, a position holds n tokens: their embeddings are merged into one. One pass through the blocks
predicts the first token of the next group, and a small network predicts the others, each given the earlier ones of the
group (RQ-Transformer, arXiv 2203.01941; MusicGen and Magenta RealTime do so with the codes of a frame). This is an
exact factorisation by the chain rule: samples follow the model's distribution, and no drafts are rejected.

The same network is an acoustic model of AudioLM and MusicLM (arXiv 2209.03143, section III; 2301.11325, section 3.2):
with `code_levels` its tokens are codes of a residual quantiser (models/rvq.py), frame by frame and level by level, and
with a `condition` they follow other tokens: semantic ones, or the codes of coarser levels.

With a `melody_span` the network follows a melody (arXiv 2301.11325, section 6): the embedding of each melody token is
added to the stream where the tokens of its time are predicted.

`models/decoding.py` samples tokens one after the other.

B batch, P prefix levels, C control tokens, M tokens of the condition, U semantic tokens or codes, N tokens of one call,
G = N / n groups, T positions or places, H heads, D channels, E = D / H channels per head, V vocabulary.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from melody_jax import melody_tokens, sharding
from melody_jax.errors import UserError
from melody_jax.models import functional, products
from melody_jax.models.controls import melody_ids, pad_controls
from melody_jax.models.functional import Params, make_rngs
from melody_jax.models.layers import MASKED, Linear, RMSNorm, dropout, merge_heads, rotary, split_heads
from melody_jax.models.lm_config import LMConfig
from melody_jax.models.platform import DotGeneral, attend
from melody_jax.models.recall import Recall, RecallState
from melody_jax.roles import EMBEDDING, HEAD, Kind, Roles


def _linear(
    config: LMConfig,
    product: DotGeneral,
    rngs: nnx.Rngs,
    inputs: int,
    outputs: int,
    gain: float = 1.0,
    role: Kind = "column",
    lora: bool = False,
) -> Linear:
    return Linear(
        inputs,
        outputs,
        role=role,
        lora=lora,
        use_bias=False,
        kernel_init=nnx.initializers.normal(gain * inputs**-0.5),
        dtype=jnp.dtype(config.dtype),
        dot_general=product,
        rngs=rngs,
    )


class Block(nnx.Module):
    """Pre-norm attention and SwiGLU, in two halves around the attention: cached decoding calls them separately.

    `product` multiplies with the weights, in place of `products.product`.
    """

    def __init__(self, config: LMConfig, product: DotGeneral = products.product, *, rngs: nnx.Rngs) -> None:
        self.config = config
        linear = partial(_linear, config, product, rngs, lora=True)
        residual_gain = (2 * config.layers) ** -0.5
        self.norm = RMSNorm(config.width, rngs=rngs)
        self.qkv = linear(config.width, 3 * config.width)
        self.out = linear(config.width, config.width, residual_gain, role="row")
        self.ffn_norm = RMSNorm(config.width, rngs=rngs)
        self.gate_up = linear(config.width, 2 * config.ffn)
        self.down = linear(config.ffn, config.width, residual_gain, role="row")

    def project(
        self, x: Float[Array, "B T D"], positions: Int[Array, " T"]
    ) -> tuple[Float[Array, "B H T E"], Float[Array, "B H T E"], Float[Array, "B H T E"]]:
        """Rotated queries, rotated keys, and values, with E = D / H channels per head."""
        heads = self.config.heads
        base = self.config.rope_base
        q, k, v = (split_heads(h, heads) for h in jnp.split(self.qkv(self.norm(x)), 3, axis=-1))
        return rotary(q, positions, base), rotary(k, positions, base), v

    def update(
        self, x: Float[Array, "B T D"], attended: Float[Array, "B H T E"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "B T D"]:
        """The residual stream plus the outputs of attention and of the feed-forward layer; `key` turns dropout on."""
        attention_key, ffn_key = (None, None) if key is None else jax.random.split(key)
        x = x + dropout(self.out(merge_heads(attended)), self.config.dropout, attention_key)
        gate, up = jnp.split(self.gate_up(self.ffn_norm(x)), 2, axis=-1)
        return x + dropout(self.down(jax.nn.silu(gate) * up), self.config.dropout, ffn_key)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, " T"],
        bias: Float[Array, "T T"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """One block over a full sequence; `bias` is additive."""
        q, k, v = self.project(x, positions)
        return self.update(x, attend(q, k, v, bias), key)


class Group(nnx.Module):
    """Merges the n tokens of a position into one embedding, and predicts n tokens from one position.

    `product` as in `Block`.
    """

    def __init__(self, config: LMConfig, product: DotGeneral = products.product, *, rngs: nnx.Rngs) -> None:
        width = config.width
        linear = partial(_linear, config, product, rngs)
        self.merge_in = linear(config.tokens_per_pass * width, width)
        self.norm = RMSNorm(width, rngs=rngs)
        self.gate_up = linear(2 * width, 2 * width)
        self.down = linear(width, width, role="row")

    def merge(self, x: Float[Array, "B N D"]) -> Float[Array, "B G D"]:
        """Embeddings of tokens, N a multiple of n, to embeddings of their groups, G = N / n."""
        batch, length, width = x.shape
        per_group = self.merge_in.in_features // width
        return self.merge_in(x.reshape(batch, length // per_group, per_group * width))

    def advance(self, x: Float[Array, "B N D"], token: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """The stream for a group's next token, from the stream for the previous token and that token's embedding."""
        gate, up = jnp.split(self.gate_up(jnp.concatenate([self.norm(x), token], axis=-1)), 2, axis=-1)
        return x + self.down(jax.nn.silu(gate) * up)


class LM(nnx.Module):
    """The network. `product` as in `Block`.

    Raises `UserError` if the heads do not divide the width evenly.
    """

    def __init__(self, config: LMConfig, product: DotGeneral = products.product, *, rngs: nnx.Rngs) -> None:
        width = config.width
        if width % (2 * config.heads):
            raise UserError(f"width {width} must be a multiple of twice the {config.heads} heads")
        prefix_key, semantic_key, block_key, head_key, extra_key = functional.split_key(rngs, 5)
        rows = sum(config.prefix_sizes) + config.prompt_length
        levels = config.code_levels
        self.config = config
        self.product = product
        if rows:
            self.prefix = nnx.Param(jax.random.normal(prefix_key, (rows, width)), role=EMBEDDING)
        if not config.given_length:
            self.beginning = nnx.Param(jax.random.normal(prefix_key, (1, width)), role=EMBEDDING)
        if config.condition:
            shape = (config.condition.levels * config.condition.ids, width)
            table = jax.random.normal(jax.random.fold_in(prefix_key, 1), shape)
            self.condition = nnx.Param(table, role=EMBEDDING)
        semantic = jax.random.normal(semantic_key, (levels * config.semantic_vocab, width))
        self.semantic = nnx.Param(semantic, role=EMBEDDING)
        self.blocks = functional.stack(Block, config, product, depth=config.layers, key=block_key)
        self.norm = RMSNorm(width, rngs=rngs)
        shape = (width, config.semantic_vocab)
        head = jax.random.normal(head_key, shape if levels == 1 else (levels, *shape)) * width**-0.5
        self.head = nnx.Param(head, role=HEAD if levels == 1 else replace(HEAD, stacked=True))
        if config.melody_span:
            self.melody = nnx.Param(jnp.zeros((melody_tokens.IDS + 1, width)), role=EMBEDDING)
        has_groups = config.tokens_per_pass > 1
        self.group = Group(config, product, rngs=make_rngs(extra_key)) if has_groups else None
        self.recall = Recall(width, config.dtype, rngs=make_rngs(extra_key)) if config.recall else None

    def embed_prefix(
        self, prefix_tokens: Int[Array, "B _"], prefix_levels: Int[Array, " B"] | None = None
    ) -> Float[Array, "B _ D"]:
        """Embeddings (B, P + C + M, D) of prefix tokens, control tokens and the condition.

        Control tokens may be absent if there is no condition. Levels >= `prefix_levels` become null, as do tokens below
        0. With 0 levels the control tokens are null as well, but not the condition. If the network has none of the
        three, (B, 1, D): the learned beginning.
        """
        condition = self.config.condition
        if not self.config.given_length:
            beginning = self.beginning[...].astype(self.config.dtype)
            return jnp.broadcast_to(beginning, (len(prefix_tokens), *beginning.shape))
        if condition is None:
            return self._embed_prompt(prefix_tokens, prefix_levels)
        prompt, tokens = jnp.split(prefix_tokens, [self.config.prompt_length], axis=1)
        offsets = np.arange(condition.length) % condition.levels * condition.ids
        table = self.condition[...].astype(self.config.dtype)
        embedded = sharding.embed_lookup(table, jnp.maximum(tokens, 0) + offsets)
        embedded = jnp.where(tokens[..., None] < 0, 0, embedded)
        if not self.config.prompt_length:
            return embedded
        return jnp.concatenate([self._embed_prompt(prompt, prefix_levels), embedded], axis=1)

    def _embed_prompt(
        self, prefix_tokens: Int[Array, "B _"], prefix_levels: Int[Array, " B"] | None
    ) -> Float[Array, "B _ D"]:
        config = self.config
        tokens = pad_controls(prefix_tokens, config.prompt_length)
        if prefix_levels is not None:
            needed = np.arange(config.prompt_length)
            needed[config.prefix_levels :] = 0
            tokens = jnp.where(needed < prefix_levels[:, None], tokens, -1)
        nulls = np.asarray(config.prefix_sizes)
        offsets = np.cumsum(nulls + 1) - nulls - 1
        table = self.prefix[...].astype(config.dtype)
        return sharding.embed_lookup(table, jnp.where(tokens < 0, nulls, tokens) + offsets)

    def embed(self, tokens: Int[Array, "B N"], start: Int[Array, ""] | int = 0) -> Float[Array, "B N D"]:
        """Embeddings of the single tokens start.., not merged into groups."""
        config = self.config
        if config.code_levels > 1:
            level = (start + jnp.arange(tokens.shape[1])) % config.code_levels
            tokens = tokens + level * config.semantic_vocab
        return sharding.embed_lookup(self.semantic[...].astype(config.dtype), tokens)

    def embed_melody(
        self, melody: Int[Array, "B M"] | None, batch: int, length: int
    ) -> Float[Array, "B _ D"]:
        """What is added where each of `length` tokens is predicted; melody tokens below 0 and missing ones are null."""
        ids = melody_ids(melody, batch, length, self.config.melody_span)
        return sharding.embed_lookup(self.melody[...].astype(self.config.dtype), ids)

    def init_recall(self, prefix: Float[Array, "B P D"], places: int) -> RecallState | None:
        """The recall state before the first of `places` tokens; None without recall."""
        return None if self.recall is None else self.recall.init_state(prefix, places)

    def embed_with_recall(
        self,
        tokens: Int[Array, "B N"],
        prefix: Float[Array, "B P D"],
        start: Int[Array, ""] | int,
        state: RecallState | None,
    ) -> tuple[Float[Array, "B G D"], Float[Array, "B H N T"] | None, RecallState | None]:
        """The blocks' input for the semantic tokens start.., G = N / n; recall's weights; the recall state after them.

        The prefix's embeddings are added to it with `prefix_everywhere`. Weights and state are None without recall.
        """
        x = self.embed(tokens, start)
        weights = None
        if self.group is not None:
            x = self.group.merge(x)
        if self.recall is not None and state is not None:
            weights, state = self.recall.attend(x, start, state)
            x = self.recall.inject(x, weights, state)
        if self.config.prefix_everywhere:
            prompt = prefix[:, : self.config.prompt_length]
            x = x + prompt.sum(axis=1, keepdims=True) * max(self.config.prefix_levels, 1) ** -0.5
        return x, weights, state

    def predict(
        self,
        x: Float[Array, "B N D"],
        weights: Float[Array, "B H N T"] | None,
        tokens: Int[Array, "B T"],
        start: Int[Array, ""] | int = 0,
    ) -> Float[Array, "B N V"]:
        """Logits of the tokens start.., from the residual stream and, with recall, from its weights over the tokens at
        all places. With several `code_levels`, N is 1, or start is 0."""
        hidden = self.norm(x)
        head = sharding.gather_kernel(self.head[...].astype(hidden.dtype), HEAD)
        if self.config.code_levels > 1:
            return self._predict_levels(hidden, head, start)
        scores = self.product(hidden, head, preferred_element_type=jnp.float32)
        if self.recall is None or weights is None:
            return scores
        copy_probs = self.recall.copy_probs(hidden, weights)
        network_share = 1 - copy_probs.sum(axis=-1, keepdims=True)
        copied = self._by_token(copy_probs, tokens)
        return jnp.log(network_share * jax.nn.softmax(scores) + copied + 1e-9)

    def _by_token(self, probs: Float[Array, "B N T"], tokens: Int[Array, "B T"]) -> Float[Array, "B N V"]:
        """The sum, for each token of the vocabulary, of the probabilities of the places that hold it."""
        vocab = self.config.semantic_vocab
        if probs.shape[1] > 1:
            return probs @ jax.nn.one_hot(tokens, vocab)
        # without a matrix of all places and tokens, which would be larger than the layer's weights
        add = jax.vmap(lambda place_probs, token: jnp.zeros(vocab).at[token].add(place_probs))
        return add(probs[:, 0], tokens)[:, None]

    def _predict_levels(
        self, hidden: Float[Array, "B N D"], heads: Float[Array, "W D V"], start: Int[Array, ""] | int
    ) -> Float[Array, "B N V"]:
        """Logits with the head of each token's level."""
        levels = self.config.code_levels
        batch, count, _ = hidden.shape
        if count == 1:
            head = jax.lax.dynamic_index_in_dim(heads, start % levels, keepdims=False)
            return products.product(hidden, head, preferred_element_type=jnp.float32)
        frames = jnp.pad(hidden, ((0, 0), (0, -count % levels), (0, 0))).reshape(
            batch, -1, levels, hidden.shape[2]
        )
        parts = [
            products.product(frames[:, :, level], heads[level], preferred_element_type=jnp.float32)
            for level in range(levels)
        ]
        return jnp.stack(parts, axis=2).reshape(batch, -1, heads.shape[2])[:, :count]

    def __call__(
        self,
        prefix_tokens: Int[Array, "B _"],
        semantic_tokens: Int[Array, "B U"],
        prefix_levels: Int[Array, " B"] | None = None,
        key: Key[Array, ""] | None = None,
        melody: Int[Array, "B M"] | None = None,
    ) -> Float[Array, "B U V"]:
        """As `logits`."""
        config = self.config
        length = semantic_tokens.shape[1]
        per_pass = config.tokens_per_pass
        tokens = jnp.pad(semantic_tokens, ((0, 0), (0, -length % per_pass)))
        history = tokens[:, :-per_pass]
        prefix = self.embed_prefix(prefix_tokens, prefix_levels)
        state = self.init_recall(prefix, history.shape[1])
        x, weights, _ = self.embed_with_recall(history, prefix, 0, state)
        x = jnp.concatenate([prefix, x], axis=1)
        if config.melody_span:
            x = x.at[:, config.prefix_length - 1 :].add(self.embed_melody(melody, len(x), length))
        block_keys = None
        if key is not None:
            keys = jax.random.split(key, 1 + config.layers)
            x = dropout(x, config.dropout, keys[0])
            block_keys = keys[1:]
        positions = jnp.arange(x.shape[1])
        inputs = (positions, causal_bias(positions, positions))
        x = functional.scan_blocks(self.blocks, x, inputs, block_keys, config.remat)
        x = x[:, config.prefix_length - 1 :]
        if self.group is None:
            return self.predict(x, None if weights is None else pad_prefix(weights), history)
        scores = [self.predict(x, None, history)]
        for j in range(1, per_pass):
            x = self.group.advance(x, self.embed(tokens[:, j - 1 :: per_pass]))
            scores.append(self.predict(x, None, history))
        return jnp.stack(scores, axis=2).reshape(*tokens.shape, -1)[:, :length]


def pad_prefix(weights: Float[Array, "B H N T"]) -> Float[Array, "B H N+1 T"]:
    """Recall's weights with zeros for the last prefix position in front: no token precedes it."""
    return jnp.pad(weights, ((0, 0), (0, 0), (1, 0), (0, 0)))


def causal_bias(queries: Int[Array, " Q"], keys: Int[Array, " K"]) -> Float[Array, "Q K"]:
    """Additive bias that hides later keys, from the positions of queries and keys."""
    return MASKED * (keys > queries[:, None])


def roles(config: LMConfig) -> Roles:
    """The role of every parameter."""
    return functional.roles(LM, config)


def shapes(config: LMConfig) -> Params:
    """The shape and type of every parameter."""
    return functional.shapes(LM, config)


def init(config: LMConfig, key: Key[Array, ""]) -> Params:
    """Fresh float32 parameters. Raises `UserError` if the heads do not divide the width evenly."""
    return functional.init(LM, config, key=key)


def embed_prefix(
    params: Params,
    config: LMConfig,
    prefix_tokens: Int[Array, "B _"],
    prefix_levels: Int[Array, " B"] | None = None,
) -> Float[Array, "B _ D"]:
    """`LM.embed_prefix` of the network with these parameters."""
    return functional.bind(LM, config, params=params).embed_prefix(prefix_tokens, prefix_levels)


def logits(
    params: Params,
    config: LMConfig,
    prefix_tokens: Int[Array, "B _"],
    semantic_tokens: Int[Array, "B U"],
    prefix_levels: Int[Array, " B"] | None = None,
    key: Key[Array, ""] | None = None,
    melody: Int[Array, "B M"] | None = None,
) -> Float[Array, "B U V"]:
    """Teacher-forced logits: entry u predicts `semantic_tokens[:, u]` from the prefix and the tokens before u.

    `prefix_levels` keeps that many leading prefix levels of each item and nulls the others; `key` turns dropout on;
    `melody` are the melody tokens of a network that follows them, -1 where there is none.
    """
    network = functional.bind(LM, config, params=params)
    return network(prefix_tokens, semantic_tokens, prefix_levels, key, melody)
