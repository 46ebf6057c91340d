"""Bootstrap intervals: what another draw of clips could have given (Efron and Tibshirani 1993, chapter 13)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits


class Interval(NamedTuple):
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def of_mean(values: np.ndarray, draws: int = 1000, seed: int = 0) -> Interval:
    """The mean of one number a clip (N,), by percentiles of the means of redrawn clips."""
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)]
    return Interval(float(values.mean()), *map(float, np.percentile(means, [2.5, 97.5])))


def of_sets(statistic: Callable[..., float], *sets: np.ndarray, draws: int = 200, seed: int = 0) -> Interval:
    """`statistic(*sets)` with the clips (first axis) of every set redrawn."""
    rng = np.random.default_rng(seed)
    with threadpool_limits(
        1, "blas"
    ):  # many small matrices: threads would wait for one another, 20 times as long
        found = [statistic(*(x[rng.integers(0, len(x), len(x))] for x in sets)) for _ in range(draws)]
        return shifted(statistic(*sets), found)


def shifted(value: float, redrawn: Sequence[float]) -> Interval:
    """An interval around `value` from its figures on redrawn clips.

    A redrawn set has clips twice, which moves a distance between sets up: the percentiles are moved so that the redrawn
    figures have `value` for their mean.
    """
    low, high = np.percentile(redrawn, [2.5, 97.5]) - np.mean(redrawn) + value
    return Interval(float(value), float(low), float(high))
