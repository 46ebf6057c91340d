"""Fréchet distance between two sets of embeddings: how far generated music as a whole is from real music.

Each set is taken for a Gaussian. The distance of finite sets is biased upwards, by about a constant over the number of
clips: compare sets of equal size, or the extrapolation to infinitely many (arXiv 1911.07023, 2311.01616).

N clips, E embedding.
"""

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from melody_jax.errors import UserError

SIZES = 8
"""Sizes of subsets that the extrapolation's line goes through."""
SUBSETS = 4
"""Subsets of each size, but for the whole set."""


@dataclass(frozen=True, eq=False)
class Moments:
    """What a Gaussian needs of a set, float64: `count` of clips, `mean` (E,), `covariance` (E, E) over count - 1."""

    count: int
    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, embeddings: np.ndarray) -> "Moments":
        """The moments of embeddings (N, E). Raises `UserError` for fewer than 2, or what is no table."""
        if embeddings.ndim != 2 or len(embeddings) < 2:
            raise UserError(
                f"embeddings of shape {embeddings.shape}: it must be (items, width), 2 items or more"
            )
        embeddings = embeddings.astype(np.float64)
        return cls(len(embeddings), embeddings.mean(axis=0), np.atleast_2d(np.cov(embeddings, rowvar=False)))

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets together: large sets are gathered part by part."""
        count, gap = self.count + other.count, other.mean - self.mean
        mean = self.mean + gap * other.count / count
        scatter = (self.count - 1) * self.covariance + (other.count - 1) * other.covariance
        scatter += np.outer(gap, gap) * self.count * other.count / count
        return Moments(count, mean, scatter / (count - 1))

    @cached_property
    def root(self) -> np.ndarray:
        """The symmetric square root (E, E) of the covariance, which may be singular."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


class Extrapolated(NamedTuple):
    """The distance of infinitely many clips, and the share of the variance that the line over 1 / N explains."""

    value: float
    fit: float


def frechet_distance(a: np.ndarray | Moments, b: np.ndarray | Moments) -> float:
    """|mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)) of embeddings (N, E) and (M, E), or their moments.

    Raises `UserError` for sets of fewer than 2 or of unlike width.
    """
    a = a if isinstance(a, Moments) else Moments.of(a)
    b = b if isinstance(b, Moments) else Moments.of(b)
    if a.mean.shape != b.mean.shape:
        raise UserError(f"embeddings of width {len(a.mean)} and {len(b.mean)}: both sets must have one width")
    # the square root of C_a C_b has the trace of that of this symmetric matrix, which may be singular
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(b.root @ a.covariance @ b.root), 0)).sum()
    apart = np.sum((a.mean - b.mean) ** 2)
    return float(apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared)


def in_parts(embeddings: np.ndarray, size: int = 1024) -> Moments:
    """`Moments.of` embeddings (N, E), `size` of them in float64 at a time."""
    starts = range(0, max(len(embeddings) - 1, 1), size)  # no part of one clip: it would have no covariance
    ends = [*list(starts)[1:], len(embeddings)]
    return reduce(Moments.__add__, (Moments.of(embeddings[i:j]) for i, j in zip(starts, ends, strict=True)))


def clip_distances(embeddings: np.ndarray, reference: Moments) -> np.ndarray:
    """(N,) distances of the clips (N, E), each taken for a set that has no spread: for ranking clips."""
    apart = np.sum((embeddings.astype(np.float64) - reference.mean) ** 2, axis=1)
    return apart + np.trace(reference.covariance)


def extrapolated(embeddings: np.ndarray, reference: Moments, seed: int = 0) -> Extrapolated | None:
    """The distance of the clips (N, E) to the reference if there were infinitely many of them.

    A line over 1 / N through the distances of random subsets of down to a quarter. None below 2 E clips, where the bias
    does not go with 1 / N. The reference is taken as it is: what it lacks in size stays as bias.
    """
    count, width = embeddings.shape
    if count < 2 * width:
        return None
    rng = np.random.default_rng(seed)
    sizes = np.rint(1 / np.linspace(1 / count, 1 / max(count // 4, width + 1), SIZES)).astype(int)
    with threadpool_limits(1, "blas"):  # as in intervals.of_sets
        found = [frechet_distance(embeddings, reference)]
        for size in sizes[1:]:
            subsets = (rng.permutation(count)[:size] for _ in range(SUBSETS))
            found.append(float(np.mean([frechet_distance(embeddings[rows], reference) for rows in subsets])))
    slope, value = np.polyfit(1 / sizes, found, 1)
    rest = np.var(np.asarray(found) - value - slope / sizes)
    return Extrapolated(float(value), float(1 - rest / max(np.var(found), 1e-30)))
