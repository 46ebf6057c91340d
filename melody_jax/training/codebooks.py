"""Initial embeddings from the codebooks of the networks that made the tokens.

Codes that are close in the quantised space start close in the embedding space too. With random embeddings, every code
must occur many times before its embedding is useful. With projected codebooks, training on one code also helps its
neighbours from the first step, and the sum over the prefix levels is a projection of MuLan's quantised embedding.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp

from melody_jax import release
from melody_jax.errors import UserError


def prefix_embeddings(mulan: str, shape: tuple[int, int, int], key: jax.Array) -> jax.Array:
    """The codebooks of the released MuLan in folder `mulan`, randomly projected: float32 of `shape`.

    `shape` is (levels, codes, width). All levels share one projection. The mean square of the first level is one;
    deeper levels keep their smaller size.

    Raises:
        UserError: there is no MuLan in the folder, or it has other levels or codes.
    """
    levels, codes, width = shape
    codebooks = _codebook(mulan, "mulan", "codebooks")
    if codebooks.shape[:2] != (levels, codes):
        size = f"{codebooks.shape[0]} levels of {codebooks.shape[1]} codes"
        raise UserError(
            f"{mulan}: MuLan has {size}, the config {levels} levels of {codes}; set the config alike"
        )
    projected = codebooks @ jax.random.normal(key, (codebooks.shape[-1], width))
    return projected * jax.lax.rsqrt(jnp.mean(projected[0] ** 2))


def semantic_embeddings(tokenizer: str, shape: tuple[int, int], key: jax.Array) -> jax.Array:
    """The centred codebook of the released tokenizer in folder `tokenizer`, randomly projected: float32 of `shape`.

    `shape` is (codes, width). The mean square is one.

    Raises:
        UserError: there is no tokenizer in the folder, or it has another number of codes.
    """
    codes, width = shape
    codebook = _codebook(tokenizer, "tokenizer", "codebook")
    if len(codebook) != codes:
        raise UserError(
            f"{tokenizer}: the tokenizer has {len(codebook)} codes, the config {codes}; set it alike"
        )
    projected = (codebook - codebook.mean(axis=0)) @ jax.random.normal(key, (codebook.shape[-1], width))
    return projected * jax.lax.rsqrt(jnp.mean(projected**2))


@lru_cache(maxsize=2)
def _codebook(folder: str, network: str, name: str) -> jax.Array:
    """Cached, because `init` is traced several times."""
    with jax.ensure_compile_time_eval():
        return release.load_network(folder, network)[0][name]
