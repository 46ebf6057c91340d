"""Arrays of tests: random ones, and equality to the bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def assert_same(a: Any, b: Any) -> None:
    """Trees of arrays are equal to the bit."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def random_like(init: Any) -> Any:
    """Random arrays of the shapes that `init(key)` has, without compiling it."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(0.2 * rng.normal(size=s.shape), s.dtype), shapes)
