"""Recall: finds where the music was like this before, and may go on as it went there.

Music repeats bars, a few tokens changed. A transformer learns to look up how it went on the last time (an "induction
head", arXiv 2209.11895) only after long training; this layer does it from the first step. Heads h = 1..H align the
latest tokens with every earlier place, one token at a time with memory lambda_h:

    a_h(t, j) = (1 - lambda_h) cos(E_t, E_(j-1)) + lambda_h a_h(t-1, j-1)         place j - 1 sounds like the present t
    w_h(t, .) = softmax over j <= t of beta_h a_h(t, j) + b_h(t + 1 - j)          so token j might come again

The prior b over lags comes from the prefix: it names the tempo, and what comes again comes after beats and bars.

The network hears what might come, x_t = E_t + [sum_j w_h(t, j) E_j]_h W, and shares its prediction with the heads
(a pointer network, arXiv 1609.07843), g = softmax([0, G hidden_t + c]):

    p(next) = g_0 softmax(logits) + sum_h g_h sum_j w_h(t, j) [next = token_j]

Codes that sound alike should have embeddings E alike (`training/codebooks.py`): then like is found, not only the same.

B batch, H heads, N new tokens, T places for all tokens, D channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from melody_jax.models.layers import MASKED, RMSNorm
from melody_jax.sharding import constrain_batch

MEMORY = (0.8, 0.95)
"""lambda at first, head by head: about 5 and 20 tokens."""
SHARPNESS = (16.0, 24.0)
"""beta at first."""
LAGS = 256
"""Lags that the prior tells apart; longer ones have none."""

Heard = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""What may be recalled: the prefix's prior over lags (B, H, LAGS), unit keys (B, T, D) and embeddings (B, T, D) of the
tokens, the latest alignment (B, H, T)."""


class Recall(nnx.Module):
    """The layer's parameters and its steps: `begin`, `look_back`, `hint`, `point`."""

    def __init__(self, width: int, dtype: str, *, rngs: nnx.Rngs) -> None:
        heads = len(MEMORY)
        memory = jnp.array(MEMORY)
        self.memory = nnx.Param(jnp.log(memory / (1 - memory)))
        self.sharpness = nnx.Param(jnp.log(jnp.array(SHARPNESS)))
        self.key = RMSNorm(width, rngs=rngs)
        self.prefix = nnx.Linear(width, width, dtype=jnp.dtype(dtype), rngs=rngs)
        self.lags = nnx.Linear(width, heads * LAGS, kernel_init=nnx.initializers.zeros, rngs=rngs)
        half = nnx.initializers.orthogonal(0.5)
        self.hints = nnx.Linear(
            heads * width, width, use_bias=False, kernel_init=half, dtype=jnp.dtype(dtype), rngs=rngs
        )
        self.shares = nnx.Linear(
            width,
            heads,
            kernel_init=nnx.initializers.zeros,
            bias_init=nnx.initializers.constant(-2.0),
            rngs=rngs,
        )

    def begin(self, prefix: jax.Array, places: int) -> Heard:
        """What may be recalled before the first token of `places`, with the prefix's embeddings (B, P, D)."""
        batch, levels, width = prefix.shape
        hidden = constrain_batch(jax.nn.gelu(self.prefix(constrain_batch(prefix.sum(axis=1) * levels**-0.5))))
        prior = constrain_batch(self.lags(hidden.astype(jnp.float32))).reshape(batch, -1, LAGS)
        rows = jnp.zeros((batch, places, width), prefix.dtype)
        return prior, rows.astype(jnp.float32), rows, jnp.zeros((batch, prior.shape[1], places))

    def look_back(self, rows: jax.Array, start: jax.Array | int, heard: Heard) -> tuple[jax.Array, Heard]:
        """Weights (B, H, N, T) over all places for the tokens start.. with embeddings (B, N, D), and `heard` with them.

        `start` counts the tokens heard before.
        """
        prior, keys, table, alignment = heard
        new = self.key(rows).astype(jnp.float32)
        new = new * jax.lax.rsqrt(jnp.sum(new * new, axis=-1, keepdims=True) + 1e-6)
        keys = jax.lax.dynamic_update_slice_in_dim(keys, new, start, axis=1)
        table = jax.lax.dynamic_update_slice_in_dim(table, rows, start, axis=1)
        memory, sharpness = jax.nn.sigmoid(self.memory[...])[:, None], jnp.exp(self.sharpness[...])[:, None]
        places = keys.shape[1]
        # place j at time t has lag t + 1 - j; what is yet to come follows it in this row, out of sight
        by_place = jnp.pad(prior[..., :places], ((0, 0), (0, 0), (0, max(0, places - LAGS))))[..., ::-1]
        by_place = jnp.pad(by_place, ((0, 0), (0, 0), (0, places)), constant_values=MASKED)

        def advance(alignment: jax.Array, item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            time, likeness = item
            alignment = (1 - memory) * likeness[:, None] + memory * alignment
            alignment = jnp.pad(alignment, ((0, 0), (0, 0), (1, 0)))[..., :-1]
            lagged = jax.lax.dynamic_slice_in_dim(by_place, places - 1 - time, places, axis=2)
            return alignment, sharpness * alignment + lagged

        likeness = (new @ keys.swapaxes(1, 2)).swapaxes(0, 1)
        times = start + jnp.arange(rows.shape[1])
        alignment, scores = jax.lax.scan(advance, alignment, (times, likeness))
        return jax.nn.softmax(scores.transpose(1, 2, 0, 3)), (prior, keys, table, alignment)

    def hint(self, rows: jax.Array, weights: jax.Array, heard: Heard) -> jax.Array:
        """What the network reads (B, N, D) for tokens with embeddings (B, N, D)."""
        recalled = weights.astype(rows.dtype) @ heard[2][:, None]
        batch, heads, length, width = recalled.shape
        return rows + constrain_batch(
            self.hints(recalled.transpose(0, 2, 1, 3).reshape(batch, length, heads * width))
        )

    def point(self, hidden: jax.Array, weights: jax.Array) -> jax.Array:
        """Probability (B, N, T) that the next token is that at a place, of final hidden states (B, N, D).

        What is missing to one is the network's own share.
        """
        shares = constrain_batch(self.shares(hidden.astype(jnp.float32)))
        shares = jax.nn.softmax(jnp.pad(shares, ((0, 0), (0, 0), (1, 0))))[..., 1:]
        return jnp.einsum("bnh,bhnt->bnt", shares, weights)
