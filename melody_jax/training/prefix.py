"""Prefix embeddings that start from MuLan's codebooks, so that codes near each other in its space start near here too.

From random embeddings every code must be met many times before it means anything. From projected codebooks the sum over
levels is the quantised embedding itself, and what is learned for one prefix serves its neighbours from the first step.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp

from melody_jax import release
from melody_jax.errors import UserError


def prefix_embeddings(mulan: str, shape: tuple[int, int, int], key: jax.Array) -> jax.Array:
    """(levels, codes, width) float32: the codebooks of the released MuLan in folder `mulan`, randomly projected.

    One projection serves all levels, and the mean square of the first level is one: deeper levels keep their smaller
    size. `shape` is what is asked for.

    Raises:
        UserError: there is no MuLan in the folder, or it has other levels or codes than asked for.
    """
    levels, codes, width = shape
    books = _codebooks(mulan)
    if books.shape[:2] != (levels, codes):
        there = f"{books.shape[0]} levels of {books.shape[1]} codes"
        raise UserError(f"{mulan}: MuLan has {there}, the config says {levels} of {codes}")
    projected = books @ jax.random.normal(key, (books.shape[-1], width))
    return projected * jax.lax.rsqrt(jnp.mean(projected[0] ** 2))


@lru_cache(maxsize=1)
def _codebooks(mulan: str) -> jax.Array:
    """Read once although `init` is traced several times."""
    with jax.ensure_compile_time_eval():
        return release.load_network(mulan, "mulan")[0]["codebooks"]
