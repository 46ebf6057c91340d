"""Kernel audio distance (KAD, arXiv 2502.15602) between two sets of embeddings.

It is 100 times the squared maximum mean discrepancy of a Gaussian kernel. The estimator is unbiased for any
number of clips and makes no Gaussian assumption; it can be negative. The bandwidth is the median distance
between clips of the reference.

Legend: N and M clips, W windows of a clip, E embedding width.
"""

from collections.abc import Iterator

import numpy as np

from melody_jax.errors import UserError
from melody_jax.evaluation.intervals import Interval, centred_interval

SCALE = 100.0
BLOCK = 1024
"""Clips of either set that are compared at a time."""
MAX_CLIPS = 2000
"""Random clips of either set from which bandwidth and interval are computed."""


def bandwidth(reference: np.ndarray, seed: int = 0) -> float:
    """The median distance between different clips of the reference (M, E)."""
    sample = _subsample(reference, seed)
    squares = _squares(sample, sample)[np.triu_indices(len(sample), 1)]
    return float(np.sqrt(max(np.median(squares), 1e-12)))


def kernel_distance(a: np.ndarray, b: np.ndarray, width: float | None = None) -> float:
    """The distance between embeddings (N, E) and the reference (M, E); `width` is the kernel's bandwidth.

    Raises:
        UserError: a set has fewer than 2 clips, or the widths differ.
    """
    _check(a, b)
    width = bandwidth(b) if width is None else width
    mean_aa = (_sum(a, a, width) - len(a)) / (len(a) * (len(a) - 1))
    mean_bb = (_sum(b, b, width) - len(b)) / (len(b) * (len(b) - 1))
    return float(SCALE * (mean_aa + mean_bb - 2 * _sum(a, b, width) / (len(a) * len(b))))


def kernel_interval(a: np.ndarray, b: np.ndarray, draws: int = 200, seed: int = 0) -> Interval:
    """`kernel_distance` with its 95 % bootstrap interval over the clips of both sets."""
    _check(a, b)
    width = bandwidth(b, seed)
    value = kernel_distance(a, b, width)
    a = _subsample(a, seed)
    b = _subsample(b, seed)
    kernels = [np.exp(-_squares(x, y) / (2 * width**2)) for x, y in ((a, a), (b, b), (a, b))]
    rng = np.random.default_rng(seed)

    def resampled() -> float:
        m, n = (rng.multinomial(len(x), np.full(len(x), 1 / len(x))).astype(np.float32) for x in (a, b))
        mean_aa = (m @ kernels[0] @ m - len(a)) / (len(a) * (len(a) - 1))
        mean_bb = (n @ kernels[1] @ n - len(b)) / (len(b) * (len(b) - 1))
        return float(SCALE * (mean_aa + mean_bb - 2 * (m @ kernels[2] @ n) / (len(a) * len(b))))

    return centred_interval(value, [resampled() for _ in range(draws)])


def paired_terms(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The terms (N, N) of the kernel distance between embeddings (N, W, E) of W windows of each clip, and the reference
    (N, W, E), where clip i was made after clip i of the reference.

    Their mean off the diagonal is the distance: the U-statistic over pairs of clips, in which no clip meets its own
    original ("A Kernel Two-Sample Test", Gretton et al. 2012, lemma 6). The diagonal is zero.

    Raises:
        UserError: there are fewer than 2 clips.
    """
    count, windows, _ = a.shape
    if count < 2:
        raise UserError(f"kernel distance of {count} clips; it needs at least 2")
    rows = [x.reshape(count * windows, -1) for x in (a, b)]
    width = bandwidth(rows[1])

    def clips(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        kernel = np.exp(-_squares(x, y) / (2 * width**2)).astype(np.float64)
        return kernel.reshape(count, windows, count, windows).mean(axis=(1, 3))

    between = clips(*rows)
    terms = SCALE * (clips(rows[0], rows[0]) + clips(rows[1], rows[1]) - between - between.T)
    np.fill_diagonal(terms, 0)
    return terms


def paired_distance(terms: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The kernel distance (...) from `paired_terms` (N, N), with clip i taken counts[..., i] times."""
    pairs = counts.sum(axis=-1) ** 2 - (counts**2).sum(axis=-1)
    return np.einsum("...i,ij,...j->...", counts, terms, counts) / pairs


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise UserError(
            f"embeddings of shapes {a.shape} and {b.shape}: both must be (items, width), 2 items or more"
        )


def _subsample(x: np.ndarray, seed: int) -> np.ndarray:
    return x if len(x) <= MAX_CLIPS else x[np.random.default_rng(seed).permutation(len(x))[:MAX_CLIPS]]


def _sum(x: np.ndarray, y: np.ndarray, width: float) -> float:
    return sum(
        float(np.exp(-_squares(p, q) / (2 * width**2)).sum(dtype=np.float64))
        for p in _blocks(x)
        for q in _blocks(y)
    )


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    return (x[start : start + BLOCK] for start in range(0, len(x), BLOCK))


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances (N, M)."""
    x = x.astype(np.float32)
    y = y.astype(np.float32)
    return np.maximum((x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T, 0)
