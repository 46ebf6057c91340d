"""Residual vector quantiser: an embedding becomes one code a level, coarse to fine (melody-paper section 2.1).

The paper's prefix is 12 levels of 1,024 codes. A codebook stack is one array (V, C, E): V levels, C codes, E width.
Fitting is training's business (`training/fit_kmeans.py:fit_residual`).
"""

import jax
import jax.numpy as jnp

from melody_jax.models import nearest_code


def quantise(codebooks: jax.Array, x: jax.Array) -> jax.Array:
    """Codes (..., V) int32 in [0, C) of x (..., E), each level on what the levels above left over."""

    def level(residual: jax.Array, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
        codes = nearest_code.assign(residual, codebook)
        return residual - codebook[codes], codes

    codes = jax.lax.scan(level, x.astype(jnp.float32), codebooks)[1]
    return jnp.moveaxis(codes, 0, -1)


def dequantise(codebooks: jax.Array, codes: jax.Array, levels: int | None = None) -> jax.Array:
    """The embedding (..., E) that codes (..., V) name; `levels` keeps the first few only."""
    kept = codes.shape[-1] if levels is None else levels
    return sum((codebooks[i][codes[..., i]] for i in range(kept)), jnp.zeros(codebooks.shape[-1]))


def usage(codes: jax.Array, size: int) -> jax.Array:
    """Share of each level's `size` codes that codes (..., V) use: (V,) in [0, 1]."""
    levels = codes.shape[-1]
    return jnp.stack([nearest_code.usage(codes[..., i], size)[0] for i in range(levels)])
