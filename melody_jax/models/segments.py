"""The sheet of dual-path networks: sequences cut into overlapping segments, and back (MeLoDy, arXiv 2305.15719,
section 4.1).

A window of L frames becomes S segments of K frames. Every frame lies in `overlap` of them, a divisor of K: in two in
the paper, where segments overlap by half; with 1 they lie side by side. Sheets are (K, B, S, W), columns first: the
layout for the recurrent network's loop over K, and no worse for the attention along S.

Legend: B batch, L frames, K frames in a segment, S segments, W channels, n merge width, C merged columns.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def merge_width(block: int, blocks: int) -> int:
    """Columns that block 0 .. N - 1 merges, n: 1, 2, 4, 8, 8, 4, 2, 1 for N = 8."""
    return 2 ** min(block, blocks - 1 - block)


def segment_count(frames: int, segment: int, overlap: int = 2) -> int:
    """Number of segments S such that every frame lies in exactly `overlap` of them."""
    return math.ceil(overlap * frames / segment) + overlap - 1


def segment(x: Float[Array, "B L W"], length: int, overlap: int = 2) -> Float[Array, "{length} B S W"]:
    """(B, L, W) -> (K, B, S, W) with K = `length`.

    Zeros in front make the first segment end with the first K / overlap frames; zeros behind fill the last segment.
    """
    batch, frames, width = x.shape
    count = segment_count(frames, length, overlap)
    hop = length // overlap
    hops = count + overlap - 1
    front = (overlap - 1) * hop
    x = jnp.pad(x, ((0, 0), (front, hops * hop - front - frames), (0, 0)))
    x = x.reshape(batch, hops, hop, width).transpose(2, 0, 1, 3)
    return jnp.concatenate([x[:, :, i : i + count] for i in range(overlap)])


def overlap_add(
    sheet: Float[Array, "K B S W"], frames: int, overlap: int = 2
) -> Float[Array, "B {frames} W"]:
    """(K, B, S, W) -> (B, L, W): sums over the segments of every frame, `overlap` times the input of `segment`."""
    hop = sheet.shape[0] // overlap
    pad = ((0, 0), (0, 0))
    parts = (
        jnp.pad(sheet[i * hop : (i + 1) * hop], (*pad, (i, overlap - 1 - i), (0, 0))) for i in range(overlap)
    )
    summed = functools.reduce(jnp.add, parts)
    _, batch, count, width = summed.shape
    front = (overlap - 1) * hop
    return summed.transpose(1, 2, 0, 3).reshape(batch, count * hop, width)[:, front : front + frames]


def merge(sheet: Float[Array, " K *rest"], n: int) -> Float[Array, " C *rest"]:
    """(K, ...) -> (ceil(K/n), ...): means of 2 n columns at stride n, with zeros behind the last column."""
    columns = sheet.shape[0]
    merged = -(-columns // n)
    padded = jnp.pad(sheet, ((0, merged * n - columns), *[(0, 0)] * (sheet.ndim - 1)))
    sums = padded.reshape(merged, n, *sheet.shape[1:]).sum(axis=1)
    sums = sums + jnp.pad(sums[1:], ((0, 1), *[(0, 0)] * (sheet.ndim - 1)))
    scale = jnp.asarray(1 / np.full(merged, 2 * n), sheet.dtype)
    return sums * scale.reshape(-1, *[1] * (sheet.ndim - 1))


def repeat(merged: Float[Array, " C *rest"], n: int, columns: int) -> Float[Array, " {columns} *rest"]:
    """(ceil(K/n), ...) -> (K, ...) with K = `columns`: every merged column n times."""
    return jnp.repeat(merged, n, axis=0)[:columns]


def segment_positions(
    count: int, length: int, frames_per_token: int, overlap: int = 2
) -> Float[np.ndarray, " {count}"]:
    """(S,) centres of the segments in token units (a token's centre is its index plus a half)."""
    hop = length // overlap
    return (np.arange(count) * hop + hop - length / 2) / frames_per_token


def column_positions(
    count: int, length: int, n: int, frames_per_token: int, overlap: int = 2
) -> Float[np.ndarray, "C {count}"]:
    """(C, S) centres in token units of the windows that `merge` averages in each segment."""
    starts = np.arange(0, length, n)
    offset = starts + np.minimum(n, (length - starts) / 2) - length / 2
    return segment_positions(count, length, frames_per_token, overlap) + offset[:, None] / frames_per_token
