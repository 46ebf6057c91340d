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

`models/decoding.py` samples tokens one after the other.

B batch, P prefix levels, C control tokens, U semantic tokens, N tokens of one call, G = N / n groups, T positions or
places, H heads, D channels, E = D / H channels per head, V vocabulary.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from melody_jax import sharding
from melody_jax.control_tokens import ControlVocabulary
from melody_jax.errors import UserError
from melody_jax.models import functional, products
from melody_jax.models.controls import pad_controls
from melody_jax.models.functional import Params, Remat
from melody_jax.models.layers import MASKED, Linear, RMSNorm, merge_heads, rotary, split_heads
from melody_jax.models.platform import DotGeneral, attend
from melody_jax.models.recall import Recall, RecallState
from melody_jax.roles import EMBEDDING, HEAD, Kind, Roles


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
    """Codes per prefix level (1024 in `paper`)."""
    prefix_everywhere: bool = True
    """Also adds the prefix to the embedding of every semantic token (not in `paper`). A small network needs most of its
    training to learn to attend to the prefix; this sum gives the prefix an effect from the start."""
    controls: ControlVocabulary | None = None
    """Control tokens that follow the prefix tokens (control_tokens.py; not in `paper`); None: none."""
    recall: bool = True
    """Finds similar earlier passages and may copy their continuation (models/recall.py; not in `paper`)."""
    semantic_vocab: int = 1024
    """Semantic ids."""
    tokens_per_pass: int = 1
    """Tokens n per pass through the blocks (1 in `paper`); more than 1 requires `recall` False."""
    dropout: float = 0.0
    """Probability of zeroing a channel of an embedding or of a residual update, in training only."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies; positions are token indices."""
    dtype: str = "float32"
    """Compute dtype of the matrix products; norms, softmax and logits are float32."""
    remat: Remat = "none"
    """What the backward pass recomputes: "none", "dots" or "blocks" (models/functional.py)."""

    def __post_init__(self) -> None:
        if self.tokens_per_pass < 1 or (self.tokens_per_pass > 1 and self.recall):
            raise UserError(
                f"tokens_per_pass is {self.tokens_per_pass}: it must be 1, or more with recall False"
            )

    @property
    def prefix_sizes(self) -> tuple[int, ...]:
        """Number of values of every prefix and control token."""
        controls = () if self.controls is None else self.controls.sizes
        return (self.prefix_codes,) * self.prefix_levels + controls

    @property
    def prefix_length(self) -> int:
        """Prefix and control tokens, P + C."""
        return len(self.prefix_sizes)


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
"""The paper's 429.5 M parameters (that figure includes a head over the prefix ids)."""
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
"""The paper's size with half the passes."""


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout with 16-bit draws; `key` None or rate 0 returns x."""
    if key is None or rate == 0.0:
        return x
    mask = jax.random.bits(key, x.shape, jnp.uint16) >= round(rate * 65536)
    return x * (mask.astype(x.dtype) / (1.0 - rate))


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
        rows = sum(config.prefix_sizes) + config.prefix_length
        self.config = config
        self.prefix = nnx.Param(jax.random.normal(prefix_key, (rows, width)), role=EMBEDDING)
        semantic = jax.random.normal(semantic_key, (config.semantic_vocab, width))
        self.semantic = nnx.Param(semantic, role=EMBEDDING)
        self.blocks = functional.stack(Block, config, product, depth=config.layers, key=block_key)
        self.norm = RMSNorm(width, rngs=rngs)
        head = jax.random.normal(head_key, (width, config.semantic_vocab)) * width**-0.5
        self.head = nnx.Param(head, role=HEAD)
        has_groups = config.tokens_per_pass > 1
        self.group = Group(config, product, rngs=nnx.Rngs(extra_key)) if has_groups else None
        self.recall = Recall(width, config.dtype, rngs=nnx.Rngs(extra_key)) if config.recall else None

    def embed_prefix(
        self, prefix_tokens: Int[Array, "B _"], prefix_levels: Int[Array, " B"] | None = None
    ) -> Float[Array, "B _ D"]:
        """Embeddings (B, P + C, D) of prefix tokens and control tokens; the latter may be absent.

        Levels >= `prefix_levels` become null, as do tokens below 0. With 0 levels the control tokens are null as well.
        """
        config = self.config
        tokens = pad_controls(prefix_tokens, config.prefix_length)
        if prefix_levels is not None:
            needed = np.arange(config.prefix_length)
            needed[config.prefix_levels :] = 0
            tokens = jnp.where(needed < prefix_levels[:, None], tokens, -1)
        nulls = np.asarray(config.prefix_sizes)
        offsets = np.cumsum(nulls + 1) - nulls - 1
        table = self.prefix[...].astype(config.dtype)
        return sharding.embed_lookup(table, jnp.where(tokens < 0, nulls, tokens) + offsets)

    def embed(self, tokens: Int[Array, "B N"]) -> Float[Array, "B N D"]:
        """Embeddings of single semantic tokens, not merged into groups."""
        return sharding.embed_lookup(self.semantic[...].astype(self.config.dtype), tokens)

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
        x = self.embed(tokens)
        weights = None
        if self.group is not None:
            x = self.group.merge(x)
        if self.recall is not None and state is not None:
            weights, state = self.recall.attend(x, start, state)
            x = self.recall.inject(x, weights, state)
        if self.config.prefix_everywhere:
            x = x + prefix.sum(axis=1, keepdims=True) * self.config.prefix_levels**-0.5
        return x, weights, state

    def predict(
        self, x: Float[Array, "B N D"], weights: Float[Array, "B H N T"] | None, tokens: Int[Array, "B T"]
    ) -> Float[Array, "B N V"]:
        """Logits from the residual stream and, with recall, from its weights over the tokens at all places."""
        hidden = self.norm(x)
        head = self.head[...].astype(hidden.dtype)
        scores = products.product(hidden, head, preferred_element_type=jnp.float32)
        if self.recall is None or weights is None:
            return scores
        copy_probs = self.recall.copy_probs(hidden, weights)
        network_share = 1 - copy_probs.sum(axis=-1, keepdims=True)
        copied = copy_probs @ jax.nn.one_hot(tokens, self.config.semantic_vocab)
        return jnp.log(network_share * jax.nn.softmax(scores) + copied + 1e-9)

    def __call__(
        self,
        prefix_tokens: Int[Array, "B _"],
        semantic_tokens: Int[Array, "B U"],
        prefix_levels: Int[Array, " B"] | None = None,
        key: Key[Array, ""] | None = None,
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
) -> Float[Array, "B U V"]:
    """Teacher-forced logits: entry u predicts `semantic_tokens[:, u]` from the prefix and the tokens before u.

    `prefix_levels` keeps that many leading prefix levels of each item and nulls the others; `key` turns dropout on.
    """
    network = functional.bind(LM, config, params=params)
    return network(prefix_tokens, semantic_tokens, prefix_levels, key)
