"""Paired comparisons: is an arm different from the base, on these clips and over seeds?

Two things are uncertain, which clips were held out and which seeds were drawn, so there are two intervals, both 95 %:

  clips   differences are averaged over seeds, clip by clip; Student's t over clips. What other clips of these runs
          would give. Each seed has one of its own too.
  seeds   differences are averaged over clips, seed by seed; Student's t over seeds. What other seeds would give.

An arm is called better or worse when both leave out zero; else the comparison settles nothing. p values are those of
the paired t tests, not corrected for how many comparisons a study makes. Of the Fréchet distance, which all clips have
together, the interval over clips is a bootstrap of clips, the same draws for both arms.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from threadpoolctl import threadpool_limits

from melody_jax.evaluation.frechet import frechet_distance
from melody_jax.evaluation.intervals import shifted

DRAWS = 200
Arrays = Mapping[str, np.ndarray]
DISTANCES = {
    "frechet": ("embeddings", "true_embeddings"),
    "prompt_frechet": ("embeddings", "true_embeddings"),
}
"""Metrics of a whole set, and the arrays they are between, (N, E) or (N, W, E)."""


class Interval(NamedTuple):
    """A mean difference with its 95 % interval and the test's p."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def holds_zero(self) -> bool:
        """Whether the sign is open; so it is without an interval."""
        return not (self.low > 0 or self.high < 0)


class Comparison(NamedTuple):
    """One arm beside the base in one metric: arm minus base."""

    arm: str
    metric: str
    value: float
    """Mean of the arm over clips and seeds."""
    base_value: float
    """Mean of the base."""
    clips: Interval
    seeds: Interval
    by_seed: list[Interval]
    """Over clips, of each seed alone."""

    @property
    def settled(self) -> bool:
        """Whether clips and seeds agree on a sign."""
        return not (self.clips.holds_zero or self.seeds.holds_zero)

    def verdict(self, better: str) -> str:
        """ "better", "worse" or "settles nothing", `better` being "lower" or "higher"."""
        if not self.settled:
            return "settles nothing"
        return "better" if (self.clips.mean < 0) == (better == "lower") else "worse"


def compare(arm: str, metric: str, own: Sequence[Arrays], base: Sequence[Arrays]) -> Comparison:
    """Compares an arm with the base, each one mapping of arrays a seed, seeds and clips in the same order."""
    if metric in DISTANCES:
        return _compare_sets(arm, metric, own, base)
    ours, theirs = (np.stack([arrays[metric] for arrays in runs]).astype(np.float64) for runs in (own, base))
    differences = ours - theirs  # (seeds, clips)
    return Comparison(
        arm=arm,
        metric=metric,
        value=float(ours.mean()),
        base_value=float(theirs.mean()),
        clips=interval(differences.mean(axis=0)),
        seeds=interval(differences.mean(axis=1)),
        by_seed=[interval(row) for row in differences],
    )


def interval(differences: np.ndarray) -> Interval:
    """The mean of paired differences (n,), Student's interval and test; without an interval (infinite) for n = 1."""
    mean = float(differences.mean())
    if len(differences) < 2:
        return Interval(mean, -math.inf, math.inf, math.nan)
    if np.ptp(differences) <= 1e-12 * abs(mean):  # no spread: nothing for the test to divide by
        return Interval(mean, mean, mean, 0.0 if mean else 1.0)
    test: Any = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(0.95)
    return Interval(mean, float(low), float(high), float(test.pvalue))


def _compare_sets(arm: str, metric: str, own: Sequence[Arrays], base: Sequence[Arrays]) -> Comparison:
    made, true = DISTANCES[metric]
    clips = len(own[0][made])
    draws = np.random.default_rng(0).integers(0, clips, (DRAWS, clips))

    def distances(runs: Sequence[Arrays], chosen: np.ndarray) -> np.ndarray:
        """(seeds,) of the chosen clips."""
        return np.array(
            [frechet_distance(_rows(run[made][chosen]), _rows(run[true][chosen])) for run in runs]
        )

    everything = np.arange(clips)
    with threadpool_limits(1, "blas"):  # many small matrices: threads would wait for one another
        ours, theirs = distances(own, everything), distances(base, everything)
        drawn = np.stack([distances(own, rows) - distances(base, rows) for rows in draws])  # (draws, seeds)
    return Comparison(
        arm=arm,
        metric=metric,
        value=float(ours.mean()),
        base_value=float(theirs.mean()),
        clips=_bootstrapped(float((ours - theirs).mean()), drawn.mean(axis=1)),
        seeds=interval(ours - theirs),
        by_seed=[_bootstrapped(float(d), drawn[:, seed]) for seed, d in enumerate(ours - theirs)],
    )


def _rows(embeddings: np.ndarray) -> np.ndarray:
    """(N, E) or (N, W, E) as a set of embeddings."""
    return embeddings.reshape(-1, embeddings.shape[-1])


def _bootstrapped(mean: float, drawn: np.ndarray) -> Interval:
    _, low, high = shifted(mean, drawn.tolist())
    moved = drawn - drawn.mean() + mean
    p = 2 * min(np.mean(moved <= 0), np.mean(moved >= 0))
    return Interval(mean, low, high, float(min(1.0, p)))
