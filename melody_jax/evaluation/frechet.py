"""Fréchet distance between two sets of embeddings, such as generated and real music.

Both sets are modelled as Gaussians. The distance of finite sets has a positive bias that is about
proportional to 1 / N: compare sets of equal size, or the extrapolation to infinitely many clips (arXiv
1911.07023, 2311.01616).

Legend: N clips, E embedding width.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from melody_jax.errors import UserError
from melody_jax.evaluation.threads import single_blas_thread

SIZES = 8
"""Subset sizes through which the extrapolation fits a line."""
SUBSETS = 4
"""Random subsets of each size below the full set."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of a set in float64: mean (E,) and unbiased covariance (E, E)."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, embeddings: np.ndarray) -> "Moments":
        """The moments of embeddings (N, E). Raises `UserError` for fewer than 2 clips or another rank."""
        if embeddings.ndim != 2 or len(embeddings) < 2:
            raise UserError(
                f"embeddings of shape {embeddings.shape}: it must be (items, width), 2 items or more"
            )
        embeddings = embeddings.astype(np.float64)
        return cls(embeddings.mean(axis=0), np.atleast_2d(np.cov(embeddings, rowvar=False)))

    @cached_property
    def root(self) -> np.ndarray:
        """The symmetric square root (E, E) of the covariance, which may be singular."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


class Extrapolated(NamedTuple):
    """The distance extrapolated to infinitely many clips."""

    value: float
    """The distance."""
    fit: float
    """Share of the variance that the line over 1 / N explains, at most 1."""


def frechet_distance(a: np.ndarray | Moments, b: np.ndarray | Moments) -> float:
    """|mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)) of embeddings (N, E) and (M, E), or of their
    moments.

    Raises:
        UserError: a set has fewer than 2 clips, or the widths differ.
    """
    a = a if isinstance(a, Moments) else Moments.of(a)
    b = b if isinstance(b, Moments) else Moments.of(b)
    if a.mean.shape != b.mean.shape:
        raise UserError(f"embeddings of width {len(a.mean)} and {len(b.mean)}: the widths must be equal")
    # (C_a C_b)^(1/2) has the same trace as the root of this symmetric matrix, which may be singular
    root_trace = np.sqrt(np.maximum(np.linalg.eigvalsh(b.root @ a.covariance @ b.root), 0)).sum()
    mean_term = np.sum((a.mean - b.mean) ** 2)
    return float(mean_term + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root_trace)


def clip_distances(embeddings: np.ndarray, reference: Moments) -> np.ndarray:
    """Distances (N,) of single clips (N, E), each as a set with zero covariance, for ranking clips."""
    mean_term = np.sum((embeddings.astype(np.float64) - reference.mean) ** 2, axis=1)
    return mean_term + np.trace(reference.covariance)


def extrapolated(embeddings: np.ndarray, reference: Moments, seed: int = 0) -> Extrapolated | None:
    """The distance between clips (N, E) and the reference, extrapolated to infinitely many clips.

    Fits a line over 1 / N to the distances of random subsets, down to a quarter of the clips. The bias of a
    finite reference remains.

    Returns:
        None for fewer than 2 E clips, where the bias is not proportional to 1 / N.
    """
    count, width = embeddings.shape
    if count < 2 * width:
        return None
    rng = np.random.default_rng(seed)
    sizes = np.rint(1 / np.linspace(1 / count, 1 / max(count // 4, width + 1), SIZES)).astype(int)
    with single_blas_thread():
        distances = [frechet_distance(embeddings, reference)]
        for size in sizes[1:]:
            subsets = (rng.permutation(count)[:size] for _ in range(SUBSETS))
            subset_distances = [frechet_distance(embeddings[rows], reference) for rows in subsets]
            distances.append(float(np.mean(subset_distances)))
    slope, value = np.polyfit(1 / sizes, distances, 1)
    residual = np.var(np.asarray(distances) - value - slope / sizes)
    return Extrapolated(float(value), float(1 - residual / max(np.var(distances), 1e-30)))
