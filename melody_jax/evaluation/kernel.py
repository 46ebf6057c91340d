"""Kernel audio distance (KAD, arXiv 2502.15602): how far two sets of embeddings are apart, taking neither for Gaussian.

The squared maximum mean discrepancy of a Gaussian kernel, times 100, by the estimator that is unbiased at any size and
hence below zero at times. The kernel's bandwidth is the median distance between clips of the reference.

N and M clips, E embedding.
"""

from collections.abc import Iterator

import numpy as np

from melody_jax.errors import UserError
from melody_jax.evaluation.intervals import Interval, shifted

SCALE = 100.0
BLOCK = 1024
"""Clips of either set that are compared at a time."""
MOST = 2000
"""Clips of either set, the first ones of a random order, that bandwidth and interval are found from."""


def bandwidth(reference: np.ndarray, seed: int = 0) -> float:
    """The median distance between different clips of the reference (M, E)."""
    some = _some(reference, seed)
    squares = _squares(some, some)[np.triu_indices(len(some), 1)]
    return float(np.sqrt(max(np.median(squares), 1e-12)))


def kernel_distance(a: np.ndarray, b: np.ndarray, width: float | None = None) -> float:
    """The distance of embeddings (N, E) from the reference (M, E), in blocks; `width` is the kernel's bandwidth.

    Raises `UserError` for sets of fewer than 2 or of unlike width.
    """
    _check(a, b)
    width = bandwidth(b) if width is None else width
    own_a = (_sum(a, a, width) - len(a)) / (len(a) * (len(a) - 1))
    own_b = (_sum(b, b, width) - len(b)) / (len(b) * (len(b) - 1))
    return float(SCALE * (own_a + own_b - 2 * _sum(a, b, width) / (len(a) * len(b))))


def kernel_interval(a: np.ndarray, b: np.ndarray, draws: int = 200, seed: int = 0) -> Interval:
    """`kernel_distance` with its 95 % bootstrap interval, clips of both sets redrawn."""
    _check(a, b)
    width, value = bandwidth(b, seed), kernel_distance(a, b, bandwidth(b, seed))
    a, b = _some(a, seed), _some(b, seed)
    kernels = [np.exp(-_squares(x, y) / (2 * width**2)) for x, y in ((a, a), (b, b), (a, b))]
    rng = np.random.default_rng(seed)

    def redrawn() -> float:
        m, n = (rng.multinomial(len(x), np.full(len(x), 1 / len(x))).astype(np.float32) for x in (a, b))
        own_a = (m @ kernels[0] @ m - len(a)) / (len(a) * (len(a) - 1))
        own_b = (n @ kernels[1] @ n - len(b)) / (len(b) * (len(b) - 1))
        return float(SCALE * (own_a + own_b - 2 * (m @ kernels[2] @ n) / (len(a) * len(b))))

    return shifted(value, [redrawn() for _ in range(draws)])


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise UserError(
            f"embeddings of shapes {a.shape} and {b.shape}: both must be (items, width), 2 items or more"
        )


def _some(x: np.ndarray, seed: int) -> np.ndarray:
    return x if len(x) <= MOST else x[np.random.default_rng(seed).permutation(len(x))[:MOST]]


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
    x, y = x.astype(np.float32), y.astype(np.float32)
    return np.maximum((x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T, 0)
