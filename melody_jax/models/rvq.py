"""Residual vector quantiser: an embedding becomes one code per level, coarse to fine (MeLoDy, section 3.1).

The paper's prefix has 12 levels of 1,024 codes. Codebooks are one array (V, C, E); `training/fit_kmeans.py:
fit_residual` fits them.

V levels, C codes, E width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melody_jax.models import nearest_code


def quantise(codebooks: Float[Array, "V C E"], x: Float[Array, "... E"]) -> Int[Array, "... V"]:
    """Codes int32 in [0, C); each level codes the residual of the levels above it."""

    def level(residual: jax.Array, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
        codes = nearest_code.assign(residual, codebook)
        return residual - codebook[codes], codes

    codes = jax.lax.scan(level, x.astype(jnp.float32), codebooks)[1]
    return jnp.moveaxis(codes, 0, -1)


def dequantise(
    codebooks: Float[Array, "V C E"], codes: Int[Array, "... W"], levels: int | None = None
) -> Float[Array, "... E"]:
    """The embedding of codes for the first W levels; `levels` uses fewer of them."""
    levels = codes.shape[-1] if levels is None else levels
    return sum((codebooks[i][codes[..., i]] for i in range(levels)), jnp.zeros(codebooks.shape[-1]))


def usage(codes: Int[Array, "... V"], size: int) -> Float[Array, " V"]:
    """Share of each level's `size` codes that occur, in [0, 1]."""
    levels = codes.shape[-1]
    return jnp.stack([nearest_code.usage(codes[..., i], size)[0] for i in range(levels)])
