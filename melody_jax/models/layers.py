"""Layers that several networks share. Norms and rotary angles are computed in float32 for every compute dtype.

B batch, T time, H heads, D channels, W = H * D.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from melody_jax import roles
from melody_jax.models.products import product
from melody_jax.roles import Kind, Role
from melody_jax.sharding import gather_kernel

MASKED = -1e9
"""Additive bias that removes an attention score."""


class Linear(nnx.Linear):
    """`nnx.Linear` whose parameters have roles: the kernel's is `role`, with `lora` as in `roles.Role`.

    It multiplies with `products.product`, unless the option `dot_general` says otherwise. On a mesh, a kernel that is
    split over the axis `fsdp` is gathered first.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        role: Kind = "column",
        lora: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        options.setdefault("dot_general", product)
        kernel_role = Role(role, lora)
        super().__init__(
            inputs,
            outputs,
            promote_dtype=_promotion(kernel_role),
            kernel_metadata={"role": kernel_role},
            bias_metadata={"role": roles.BIAS},
            rngs=rngs,
            **options,
        )


@lru_cache
def _promotion(role: Role) -> Callable[..., Any]:
    """`_promote` of a role; one object for equal layers, which then have equal structures."""
    return partial(_promote, role)


def _promote(role: Role, arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Input, kernel and bias of a layer in the type that it multiplies in, the kernel gathered in that type."""
    x, kernel, bias = dtypes.promote_dtype(arrays, dtype=dtype, inexact=inexact)
    return x, gather_kernel(kernel, role), bias


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis (arXiv 1910.07467) with a learned gain, initially `gain`."""

    def __init__(self, width: int, gain: float = 1.0, *, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(jnp.full(width, gain), role=roles.NORM)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """The normalised x, in its own dtype."""
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-6)
        return (h * self.scale[...]).astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout with 16-bit draws; `key` None or rate 0 returns x."""
    if key is None or rate == 0.0:
        return x
    mask = jax.random.bits(key, x.shape, jnp.uint16) >= round(rate * 65536)
    return x * (mask.astype(x.dtype) / (1.0 - rate))


def split_heads(x: Float[Array, "B T W"], heads: int) -> Float[Array, "B H T D"]:
    """The channels of each head on an axis of their own."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def merge_heads(x: Float[Array, "B H T D"]) -> Float[Array, "B T W"]:
    """The inverse of `split_heads`."""
    batch, heads, length, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * width)


def rotary(
    x: Float[Array, "B H T D"], positions: Num[ArrayLike, "... T"], base: float = 10000.0
) -> Float[Array, "B H T D"]:
    """Rotary position embedding (RoFormer, arXiv 2104.09864), halves convention; D is even.

    `positions` is (T,) or (B, T), in any unit.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.asarray(positions, jnp.float32)[..., None] * frequencies
    if angles.ndim == 3:
        angles = angles[:, None]
    cos = jnp.cos(angles)
    sin = jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, first * sin + second * cos]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
