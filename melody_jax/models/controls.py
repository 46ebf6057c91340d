"""Control tokens (control_tokens.py) as arrays: behind the prefix tokens of a batch, some of them dropped in training.

B batch, P prefix levels, C controls.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray


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


def pad_controls(prefix_tokens: Int[Array, "B P"], length: int) -> Int[Array, "B {length}"]:
    """The first `length` prefix and control tokens; what is missing is -1."""
    missing = max(0, length - prefix_tokens.shape[1])
    return jnp.pad(prefix_tokens[:, :length], ((0, 0), (0, missing)), constant_values=-1)
