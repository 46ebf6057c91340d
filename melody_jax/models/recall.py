"""Recall: finds earlier places where the music resembles the present, and may copy their continuation.

Music repeats bars with a few tokens changed. A transformer learns to look up how the last repetition continued (an
"induction head", arXiv 2209.11895) only after long training; this layer does it from the first step. Heads h = 1..H
align the latest tokens with every earlier place, one token at a time with memory lambda_h:

    a_h(t, j) = (1 - lambda_h) cos(E_t, E_(j-1)) + lambda_h a_h(t-1, j-1)         place j - 1 resembles the present t
    w_h(t, .) = softmax over j <= t of beta_h a_h(t, j) + b_h(t + 1 - j)          so token j is likely to follow

The prior b over lags is computed from the prefix: the prefix implies the tempo, and repetitions follow after beats and
bars.

The network reads the recalled embeddings, x_t = E_t + [sum_j w_h(t, j) E_j]_h W, and shares its prediction with the
heads (a pointer network, arXiv 1609.07843), g = softmax([0, G hidden_t + c]):

    p(next) = g_0 softmax(logits) + sum_h g_h sum_j w_h(t, j) [next = token_j]

Codes of similar sounds should have similar embeddings E (`training/codebooks.py`): recall then finds similar passages,
not only identical ones.

B batch, P prefix levels, H heads, N new tokens, T places for all tokens, D channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from melody_jax.models.layers import MASKED, Linear, RMSNorm
from melody_jax.roles import VECTOR
from melody_jax.sharding import constrain_batch

MEMORY = (0.8, 0.95)
"""Initial lambda of each head: about 5 and 20 tokens."""
SHARPNESS = (16.0, 24.0)
"""Initial beta of each head."""
LAGS = 256
"""Lags that the prior covers, in tokens; longer ones have no prior."""


class RecallState(NamedTuple):
    """State carried from the tokens so far to the next ones."""

    prior: Float[Array, "B H L"]
    """Logits over lags, computed from the prefix."""
    keys: Float[Array, "B T D"]
    """Unit keys of the tokens so far; zero at later places."""
    embeddings: Float[Array, "B T D"]
    """Embeddings of the tokens so far; zero at later places."""
    alignment: Float[Array, "B H T"]
    """Alignment of the latest token with every place."""


class Recall(nnx.Module):
    """The layer's parameters and its steps: `init_state`, `attend`, `inject`, `copy_probs`."""

    def __init__(self, width: int, dtype: str, *, rngs: nnx.Rngs) -> None:
        heads = len(MEMORY)
        memory = jnp.array(MEMORY)
        self.memory = nnx.Param(jnp.log(memory / (1 - memory)), role=VECTOR)
        self.sharpness = nnx.Param(jnp.log(jnp.array(SHARPNESS)), role=VECTOR)
        self.key = RMSNorm(width, rngs=rngs)
        self.prefix = Linear(width, width, dtype=jnp.dtype(dtype), rngs=rngs)
        self.lags = Linear(width, heads * LAGS, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.hints = Linear(
            heads * width,
            width,
            use_bias=False,
            kernel_init=nnx.initializers.orthogonal(0.5),
            dtype=jnp.dtype(dtype),
            rngs=rngs,
        )
        self.shares = Linear(
            width,
            heads,
            kernel_init=nnx.initializers.zeros,
            bias_init=nnx.initializers.constant(-2.0),
            rngs=rngs,
        )

    def init_state(self, prefix: Float[Array, "B P D"], places: int) -> RecallState:
        """The state before the first of `places` tokens, given the prefix's embeddings."""
        batch, levels, width = prefix.shape
        hidden = constrain_batch(jax.nn.gelu(self.prefix(constrain_batch(prefix.sum(axis=1) * levels**-0.5))))
        prior = constrain_batch(self.lags(hidden.astype(jnp.float32))).reshape(batch, -1, LAGS)
        embeddings = jnp.zeros((batch, places, width), prefix.dtype)
        alignment = jnp.zeros((batch, prior.shape[1], places))
        return RecallState(prior, embeddings.astype(jnp.float32), embeddings, alignment)

    def attend(
        self, embeddings: Float[Array, "B N D"], start: Int[Array, ""] | int, state: RecallState
    ) -> tuple[Float[Array, "B H N T"], RecallState]:
        """Weights over all places for the tokens start.. with these embeddings, and the state after them.

        `start` is the number of tokens already in the state.
        """
        new_keys = self.key(embeddings).astype(jnp.float32)
        new_keys = new_keys * jax.lax.rsqrt(jnp.sum(new_keys * new_keys, axis=-1, keepdims=True) + 1e-6)
        keys = jax.lax.dynamic_update_slice_in_dim(state.keys, new_keys, start, axis=1)
        table = jax.lax.dynamic_update_slice_in_dim(state.embeddings, embeddings, start, axis=1)
        memory = jax.nn.sigmoid(self.memory[...])[:, None]
        sharpness = jnp.exp(self.sharpness[...])[:, None]
        places = keys.shape[1]
        # Place j has lag t + 1 - j at time t. The row holds the lags in reverse, then masked entries for later places,
        # so that the scores at time t are one slice of it.
        by_place = jnp.pad(state.prior[..., :places], ((0, 0), (0, 0), (0, max(0, places - LAGS))))[..., ::-1]
        by_place = jnp.pad(by_place, ((0, 0), (0, 0), (0, places)), constant_values=MASKED)

        def advance(alignment: jax.Array, item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            time, similarity = item
            alignment = (1 - memory) * similarity[:, None] + memory * alignment
            alignment = jnp.pad(alignment, ((0, 0), (0, 0), (1, 0)))[..., :-1]
            lag_prior = jax.lax.dynamic_slice_in_dim(by_place, places - 1 - time, places, axis=2)
            return alignment, sharpness * alignment + lag_prior

        similarity = (new_keys @ keys.swapaxes(1, 2)).swapaxes(0, 1)
        times = start + jnp.arange(embeddings.shape[1])
        alignment, scores = jax.lax.scan(advance, state.alignment, (times, similarity))
        weights = jax.nn.softmax(scores.transpose(1, 2, 0, 3))
        return weights, RecallState(state.prior, keys, table, alignment)

    def inject(
        self, embeddings: Float[Array, "B N D"], weights: Float[Array, "B H N T"], state: RecallState
    ) -> Float[Array, "B N D"]:
        """The tokens' embeddings with the recalled embeddings added."""
        recalled = weights.astype(embeddings.dtype) @ state.embeddings[:, None]
        batch, heads, length, width = recalled.shape
        recalled = recalled.transpose(0, 2, 1, 3).reshape(batch, length, heads * width)
        return embeddings + constrain_batch(self.hints(recalled))

    def copy_probs(
        self, hidden: Float[Array, "B N D"], weights: Float[Array, "B H N T"]
    ) -> Float[Array, "B N T"]:
        """Probability that the next token is a copy of the token at each place, from final hidden states.

        They sum to less than one; the rest is the share of the network's own prediction.
        """
        shares = constrain_batch(self.shares(hidden.astype(jnp.float32)))
        shares = jax.nn.softmax(jnp.pad(shares, ((0, 0), (0, 0), (1, 0))))[..., 1:]
        return jnp.einsum("bnh,bhnt->bnt", shares, weights)
