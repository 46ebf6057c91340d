"""The sheet of dual-path networks: sequences cut into overlapping segments, and back (MeLoDy, section 4.2).

A window of L frames becomes S segments of K frames. Every frame lies in `overlap` of them, a divisor of K: in two in
the paper, which overlap by half; 1 lays them side by side. Sheets are (K, B, S, W), columns first: that is what the
recurrent network's loop over K wants, and the attention along S does not mind.

Legend: B batch, L frames, K frames in a segment, S segments, W channels, n merge width, C merged columns.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def merge_width(block: int, blocks: int) -> int:
    """Columns that block 0 .. N - 1 merges, n: 1, 2, 4, 8, 8, 4, 2, 1 for N = 8."""
    return 2 ** min(block, blocks - 1 - block)


def segment_count(frames: int, segment: int, overlap: int = 2) -> int:
    """Segments S of cuts such that every frame lies in exactly `overlap`."""
    return math.ceil(overlap * frames / segment) + overlap - 1


def segment(x: jax.Array, length: int, overlap: int = 2) -> jax.Array:
    """(B, L, W) -> (K, B, S, W) with K = `length`.

    Zeros pad it, in front so many that the first segment ends with the first frames, and behind what is missing.
    """
    batch, frames, width = x.shape
    count, hop = segment_count(frames, length, overlap), length // overlap
    pieces = count + overlap - 1
    front = (overlap - 1) * hop
    x = jnp.pad(x, ((0, 0), (front, pieces * hop - front - frames), (0, 0)))
    x = x.reshape(batch, pieces, hop, width).transpose(2, 0, 1, 3)
    return jnp.concatenate([x[:, :, i : i + count] for i in range(overlap)])


def overlap_add(sheet: jax.Array, frames: int, overlap: int = 2) -> jax.Array:
    """(K, B, S, W) -> (B, L, W), the sum of all segments of every frame: `overlap` times what `segment` was given."""
    hop = sheet.shape[0] // overlap
    pad = ((0, 0), (0, 0))
    parts = (
        jnp.pad(sheet[i * hop : (i + 1) * hop], (*pad, (i, overlap - 1 - i), (0, 0))) for i in range(overlap)
    )
    pieces = functools.reduce(jnp.add, parts)
    _, batch, count, width = pieces.shape
    front = (overlap - 1) * hop
    return pieces.transpose(1, 2, 0, 3).reshape(batch, count * hop, width)[:, front : front + frames]


def merge(sheet: jax.Array, n: int, normalised: bool = False) -> jax.Array:
    """(K, ...) -> (ceil(K/n), ...): means of 2 n columns at stride n, with zeros behind the last column.

    `normalised` divides by the columns that are real instead of by 2 n.
    """
    columns = sheet.shape[0]
    merged = -(-columns // n)
    padded = jnp.pad(sheet, ((0, merged * n - columns), *[(0, 0)] * (sheet.ndim - 1)))
    sums = padded.reshape(merged, n, *sheet.shape[1:]).sum(axis=1)
    sums = sums + jnp.pad(sums[1:], ((0, 1), *[(0, 0)] * (sheet.ndim - 1)))
    real = np.minimum(columns - n * np.arange(merged), 2 * n) if normalised else np.full(merged, 2 * n)
    scale = jnp.asarray(1 / real, sheet.dtype)
    return sums * scale.reshape(-1, *[1] * (sheet.ndim - 1))


def repeat(merged: jax.Array, n: int, columns: int) -> jax.Array:
    """(ceil(K/n), ...) -> (K, ...) with K = `columns`: every merged column n times."""
    return jnp.repeat(merged, n, axis=0)[:columns]


def segment_clock(count: int, length: int, frames_per_token: int, overlap: int = 2) -> np.ndarray:
    """(S,) centres of the segments in token units (a token's own centre is its index plus a half)."""
    hop = length // overlap
    return (np.arange(count) * hop + hop - length / 2) / frames_per_token


def column_clock(count: int, length: int, n: int, frames_per_token: int, overlap: int = 2) -> np.ndarray:
    """(C, S) centres in token units of the windows that `merge` takes from each segment."""
    offset = np.arange(0, length, n) + np.minimum(n, (length - np.arange(0, length, n)) / 2) - length / 2
    return segment_clock(count, length, frames_per_token, overlap) + offset[:, None] / frames_per_token
