"""Residual vector quantiser: an embedding becomes one code per level, coarse to fine (MeLoDy, section 3.1).

The paper's prefix has 12 levels of 1,024 codes. Codebooks are one array (V, C, E). Those of MuLan are fitted after
training (`training/fit_kmeans.py: fit_residual`); those of an autoencoder with a `QuantiserConfig`, as in SoundStream
(arXiv 2107.03312), are moving averages of what they quantise (`training/tracked_codebooks.py`).

V levels, C codes, E width.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from melody_jax.errors import UserError
from melody_jax.models import nearest_code


@dataclass(frozen=True, kw_only=True)
class QuantiserConfig:
    """The residual quantiser of an autoencoder. Defaults are MusicLM's (arXiv 2301.11325): 6 kbit/s at 50 Hz."""

    levels: int = 12
    """Levels V."""
    codes: int = 1024
    """Codes C of each level."""

    def __post_init__(self) -> None:
        for name, least in (("levels", 1), ("codes", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name} {getattr(self, name)}: it must be at least {least}")

    @property
    def bits(self) -> float:
        """Bits of one latent."""
        return self.levels * math.log2(self.codes)


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
