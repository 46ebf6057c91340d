"""Control tokens (control_tokens.py) as arrays: behind the prefix tokens of a batch, some of them dropped in training;
and melody tokens (melody_tokens.py).

B batch, P prefix levels, C controls, M melody tokens.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from melody_jax.melody_tokens import IDS, NONE


def drop_controls(tokens: Int[Array, "B C"], key: PRNGKeyArray) -> Int[Array, "B C"]:
    """The tokens with some replaced by -1, so that each number of controls from none to all is equally likely."""
    batch, count = tokens.shape
    share_key, drop_key = jax.random.split(key)
    shares = jax.random.uniform(share_key, (batch, 1))
    dropped = jax.random.uniform(drop_key, (batch, count)) < shares
    return jnp.where(dropped, -1, tokens)


def partners(kinds: Int[Array, " B"], key: PRNGKeyArray) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """For each item the index of a random other one of the same kind, and whether there is one; -1 is no kind."""
    count = len(kinds)
    is_same = (kinds[:, None] == kinds) & (kinds >= 0) & ~jnp.eye(count, dtype=bool)
    partner = jnp.where(is_same, jax.random.uniform(key, (count, count)), -1.0).argmax(axis=1)
    return partner, is_same.any(axis=1)


def melody_ids(
    melody: Int[Array, "B M"] | None, batch: int, length: int, span: int
) -> Int[Array, "B {length}"]:
    """The melody's id at each of `length` tokens, `span` of which last as long as a melody token; `IDS` is none."""
    melody = jnp.zeros((batch, 0), jnp.int32) if melody is None else melody
    frames = -(-length // span)
    missing = max(0, frames - melody.shape[1])
    padded = jnp.pad(melody[:, :frames], ((0, 0), (0, missing)), constant_values=NONE)
    return jnp.repeat(jnp.where(padded < 0, IDS, padded), span, axis=1)[:, :length]


def drop_melody(
    melody: Int[Array, "B M"], is_dropped: Bool[Array, " B"], key: PRNGKeyArray
) -> Int[Array, "B M"]:
    """The melodies without those that are dropped; a quarter of the others ends at a random place, as tunes do."""
    batch, length = melody.shape
    ends_key, place_key = jax.random.split(key)
    place = jax.random.randint(place_key, (batch, 1), 0, length)
    ends = jax.random.bernoulli(ends_key, 0.25, (batch, 1)) & (jnp.arange(length) >= place)
    return jnp.where(is_dropped[:, None] | ends, NONE, melody)


def pad_controls(prefix_tokens: Int[Array, "B P"], length: int) -> Int[Array, "B {length}"]:
    """The first `length` prefix and control tokens; what is missing is -1."""
    missing = max(0, length - prefix_tokens.shape[1])
    return jnp.pad(prefix_tokens[:, :length], ((0, 0), (0, missing)), constant_values=-1)
