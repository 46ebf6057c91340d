"""The sheet of dual-path networks: sequences cut into half-overlapping segments, and back (MeLoDy, section 4.2).

A window of L frames becomes S segments of K frames. Sheets are (K, B, S, W), columns first: that is what the recurrent
network's loop over K wants, and the attention along S does not mind.

Legend: B batch, L frames, K frames in a segment (even), S segments, W channels, n merge width, C merged columns.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def merge_width(block: int, blocks: int) -> int:
    """Columns that block 0 .. N - 1 merges, n: 1, 2, 4, 8, 8, 4, 2, 1 for N = 8."""
    return 2 ** min(block, blocks - 1 - block)


def segment_count(frames: int, segment: int) -> int:
    """Segments S of half-overlapping cuts such that every frame lies in exactly two."""
    return math.ceil(2 * frames / segment) + 1


def segment(x: jax.Array, length: int) -> jax.Array:
    """(B, L, W) -> (K, B, S, W) with K = `length`: zero padding, half K in front and what is missing behind."""
    batch, frames, width = x.shape
    count, half = segment_count(frames, length), length // 2
    x = jnp.pad(x, ((0, 0), (half, count * half - frames), (0, 0)))
    halves = x.reshape(batch, count + 1, half, width).transpose(2, 0, 1, 3)
    return jnp.concatenate([halves[:, :, :-1], halves[:, :, 1:]])


def overlap_add(sheet: jax.Array, frames: int) -> jax.Array:
    """(K, B, S, W) -> (B, L, W), the sum of both segments of every frame: twice what `segment` was given."""
    half = sheet.shape[0] // 2
    pad = ((0, 0), (0, 0))
    halves = jnp.pad(sheet[:half], (*pad, (0, 1), (0, 0))) + jnp.pad(sheet[half:], (*pad, (1, 0), (0, 0)))
    _, batch, count, width = halves.shape
    return halves.transpose(1, 2, 0, 3).reshape(batch, count * half, width)[:, half : half + frames]


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


def segment_clock(count: int, length: int, frames_per_token: int) -> np.ndarray:
    """(S,) centres of the segments in token units (a token's own centre is its index plus a half)."""
    return np.arange(count) * (length // 2) / frames_per_token


def column_clock(count: int, length: int, n: int, frames_per_token: int) -> np.ndarray:
    """(C, S) centres in token units of the windows that `merge` takes from each segment."""
    offset = np.arange(0, length, n) + np.minimum(n, (length - np.arange(0, length, n)) / 2) - length / 2
    return segment_clock(count, length, frames_per_token) + offset[:, None] / frames_per_token
