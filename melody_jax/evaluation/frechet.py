"""Fréchet distance between two sets of embeddings: how far generated music as a whole is from real music."""

import numpy as np

from melody_jax.errors import UserError


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)) of embeddings (N, E) and (M, E), at least 2 each.

    Biased upwards, the more so the fewer items: compare sets of equal size alone. Raises `UserError` for sets that are
    too small or of unlike width.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise UserError(f"embeddings of shapes {a.shape} and {b.shape}: both must be (items, width), 2 items or more")
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # the square root of C_a C_b has the trace of that of this symmetric matrix, which may be singular
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * shared)
