"""Operations whose fast form depends on the platform: attention, depthwise convolutions, products of few rows.

Networks call these functions and contain no platform-specific code. All measurements are for XLA:CPU.

B batch, T time, S key positions, N new positions, H heads, D channels, E channels of the result, W taps.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

DotGeneral = Callable[..., jax.Array]
"""A replacement for `jax.lax.dot_general` in `nnx.Linear`."""
KVCache = tuple[jax.Array, jax.Array]
"""Keys (B * H, D / H, T) and values (B * H, T, D / H) of one block: XLA:CPU copies or transposes any other layout at
every step."""

MATVEC_ROWS = 8
"""Rows up to which a product takes as long as reading the matrix."""
ROWS_APART = 4
"""Rows up to which a product with a matrix below `MATVEC_SIZE` is faster as one product per row."""
MATVEC_SIZE = 2**20
"""Elements of the smallest matrix that a core's cache does not hold between tokens; smaller ones keep their layout."""

T = TypeVar("T")


def on_cpu_or_else(cpu: Callable[..., T], default: Callable[..., T], *args: Any) -> T:
    """`cpu(*args)` where the program is compiled for a CPU, `default(*args)` on any other platform."""
    return jax.lax.platform_dependent(*args, cpu=cpu, default=default)


def attend(
    q: Float[Array, "*B T D"],
    k: Float[Array, "*B S D"],
    v: Float[Array, "*B S E"],
    bias: Float[Array, "..."] | None = None,
) -> Float[Array, "*B T E"]:
    """Scaled dot-product attention; `bias` is added to the scores (*B, T, S): 0, or a large negative number.

    Scores and their softmax are float32 for every compute dtype.

    Batched products in this layout are several times faster than `jax.nn.dot_product_attention`.
    """
    scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return jax.nn.softmax(scores, axis=-1).astype(v.dtype) @ v


def init_cache(batch: int, heads: int, length: int, width: int, dtype: str) -> KVCache:
    """An empty cache for `length` positions of `heads` heads with `width` channels each."""
    keys = jnp.zeros((batch * heads, width, length), dtype)
    values = jnp.zeros((batch * heads, length, width), dtype)
    return keys, values


def attend_cached(
    q: Float[Array, "B H N D"],
    k: Float[Array, "B H N D"],
    v: Float[Array, "B H N D"],
    bias: Float[Array, "N T"],
    cache: KVCache,
    start: Int[Array, ""] | int,
) -> tuple[Float[Array, "B H N D"], KVCache]:
    """Attention of the positions start.. over the cache after adding them; the result and the new cache.

    `bias` is added to the scores and hides the positions that are not filled yet.
    """
    keys, values = cache
    merged = (-1, *q.shape[2:])
    keys = jax.lax.dynamic_update_slice_in_dim(keys, k.reshape(merged).swapaxes(1, 2), start, axis=2)
    values = jax.lax.dynamic_update_slice_in_dim(values, v.reshape(merged), start, axis=1)
    scores = jnp.matmul(q.reshape(merged), keys, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5 + bias
    attended = jax.nn.softmax(scores).astype(v.dtype) @ values
    return attended.reshape(q.shape), (keys, values)


def matvec_layout(tree: T) -> T:
    """The tree with its large matrices (D, D') transposed to (D', D), the layout that `matvec` expects.

    With the output channel first, one row multiplies at the rate at which a CPU reads memory. Measured on two cores
    with 1.6 GB of weights, one row: 46 GB/s, compared with 31 GB/s with the input channel first.
    """
    return jax.tree.map(lambda leaf: leaf.T if leaf.ndim == 2 and leaf.size >= MATVEC_SIZE else leaf, tree)


def matvec(
    x: Float[Array, "... D"], kernel: Float[Array, "_ _"], dimension_numbers: Any = None, **settings: Any
) -> Float[Array, "... E"]:
    """Rows x times a kernel in the layout of `matvec_layout`. Replaces `jax.lax.dot_general`.

    Decoding reads every weight for every token and has few rows: one per clip, two with guidance. For two or more rows
    XLA:CPU repacks the matrix before it multiplies and reaches half of the memory rate; an elementwise product and a
    sum over the same layout read each weight once (two rows: 34 GB/s, compared with 20 GB/s). A small matrix stays in
    the cache, so each row may read it again, without repacking: the 9 MB of `mini`'s blocks take 0.37 ms for two rows
    (24 GB/s), compared with 0.91 ms, on a processor with AVX2.
    """
    rows = x.size // x.shape[-1]
    is_large = kernel.size >= MATVEC_SIZE
    if x.dtype == jnp.float32 and 1 < rows <= (MATVEC_ROWS if is_large else ROWS_APART):
        flat = x.reshape(rows, -1)
        # XLA does not fuse a gather: fused, the computation of x would be repeated for every output.
        y = (
            jnp.sum(kernel * flat[jnp.arange(rows)][:, None], axis=-1)
            if is_large
            else _rows_apart(flat, kernel)
        )
        return y.reshape(*x.shape[:-1], -1)
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (int(is_large),)), ((), ())), **settings)


def _rows_apart(x: Float[Array, "rows D"], kernel: Float[Array, "D E"]) -> Float[Array, "rows E"]:
    return jnp.stack([row @ kernel for row in x])


@jax.custom_vjp
def depthwise_conv(x: Float[Array, "B T D"], kernel: Float[Array, "W D"]) -> Float[Array, "B T D"]:
    """Depthwise convolution over time with 'same' zero padding, W odd.

    Shifted multiply-adds: `lax.conv` with feature groups is two orders of magnitude slower. The derivative is written
    out because the automatic one, a sum of W padded arrays, takes four times as long.
    """
    width = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    taps = (padded[:, i : i + x.shape[1]] * kernel[i].astype(x.dtype) for i in range(width))
    return sum(taps, start=jnp.zeros((), x.dtype))


def _depthwise_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise_conv(x, kernel), (x, kernel)


def _depthwise_backward(
    saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    width = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    taps = [
        jnp.sum((padded[:, i : i + x.shape[1]] * cotangent).astype(kernel.dtype), axis=(0, 1))
        for i in range(width)
    ]
    return depthwise_conv(cotangent, kernel[::-1]), jnp.stack(taps)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)
