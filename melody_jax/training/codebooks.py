"""Embeddings that start from the codebooks of the networks that made the tokens.

Codes near each other in the space they quantise start near each other here too. From random embeddings every code must
be met many times before it means anything; from projected codebooks what is learned for one code serves its neighbours
from the first step, and the sum over the prefix levels is MuLan's quantised embedding itself.
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
    books = _codebook(mulan, "mulan", "codebooks")
    if books.shape[:2] != (levels, codes):
        there = f"{books.shape[0]} levels of {books.shape[1]} codes"
        raise UserError(f"{mulan}: MuLan has {there}, the config says {levels} of {codes}")
    projected = books @ jax.random.normal(key, (books.shape[-1], width))
    return projected * jax.lax.rsqrt(jnp.mean(projected[0] ** 2))


def semantic_embeddings(tokenizer: str, shape: tuple[int, int], key: jax.Array) -> jax.Array:
    """(codes, width) float32: the centred codebook of the released tokenizer in folder `tokenizer`, randomly projected.

    The mean square is one. `shape` is what is asked for.

    Raises:
        UserError: there is no tokenizer in the folder, or it has another number of codes than asked for.
    """
    codes, width = shape
    book = _codebook(tokenizer, "tokenizer", "codebook")
    if len(book) != codes:
        raise UserError(f"{tokenizer}: the tokenizer has {len(book)} codes, the config says {codes}")
    projected = (book - book.mean(axis=0)) @ jax.random.normal(key, (book.shape[-1], width))
    return projected * jax.lax.rsqrt(jnp.mean(projected**2))


@lru_cache(maxsize=2)
def _codebook(folder: str, network: str, name: str) -> jax.Array:
    """Read once although `init` is traced several times."""
    with jax.ensure_compile_time_eval():
        return release.load_network(folder, network)[0][name]
