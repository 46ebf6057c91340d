"""All 95 % intervals: bootstrap over clips (Efron and Tibshirani 1993, chapter 13), Student's t for paired runs, and
Wilson's for rates."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from tqdm import tqdm

from melody_jax.evaluation.threads import single_blas_thread

PERCENTILES = (2.5, 97.5)


class Interval(NamedTuple):
    """A statistic and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


class Difference(NamedTuple):
    """A mean paired difference, the ends of its 95 % interval and the p value of "no difference"."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def contains_zero(self) -> bool:
        """Whether the sign is undecided; an infinite interval leaves it undecided."""
        return not (self.low > 0 or self.high < 0)


def mean_interval(values: np.ndarray, draws: int = 1000, seed: int = 0) -> Interval:
    """The mean of one number per clip (N,); the interval is from the percentiles of `draws` resampled
    means."""
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(draws)]
    return Interval(float(values.mean()), *map(float, np.percentile(means, PERCENTILES)))


def set_interval(
    statistic: Callable[..., float], *sets: np.ndarray, draws: int = 200, seed: int = 0, title: str = ""
) -> Interval:
    """`statistic(*sets)`; the interval is from `draws` resamples of the clips (first axis) of every set.

    Resamples for which the statistic is nan do not count. `title` shows a progress bar of that name on a terminal.
    """
    rng = np.random.default_rng(seed)
    bar = tqdm(range(draws), desc=title, unit="resample", leave=False, disable=None if title else True)
    with single_blas_thread():
        resampled = [statistic(*(x[rng.integers(0, len(x), len(x))] for x in sets)) for _ in bar]
        value = statistic(*sets)
    defined = [one for one in resampled if not np.isnan(one)]
    return centred_interval(value, defined or [value])


def centred_interval(value: float, resampled: Sequence[float] | np.ndarray) -> Interval:
    """The percentile interval of resampled statistics, shifted so that their mean is `value`.

    A resampled set contains duplicate clips, which biases a distance between sets upwards; the shift removes
    that bias.
    """
    low, high = np.percentile(resampled, PERCENTILES) - np.mean(resampled) + value
    return Interval(float(value), float(low), float(high))


def wilson_interval(wins: float, count: int) -> Interval:
    """The rate `wins` / `count` with Wilson's score interval (1927, JASA 22), which lies in [0, 1] for any count.

    wins: 0 to `count`; may have halves. count: at least 1.
    """
    rate = wins / count
    z = stats.norm.ppf(PERCENTILES[1] / 100)
    weight = z * z / count
    centre = (rate + weight / 2) / (1 + weight)
    half = z * math.sqrt(rate * (1 - rate) / count + weight / (4 * count)) / (1 + weight)
    return Interval(rate, float(max(0.0, centre - half)), float(min(1.0, centre + half)))


def paired_bootstrap(mean: float, resampled: np.ndarray) -> Difference:
    """The `centred_interval` of a mean difference, with the bootstrap's two-sided p value."""
    _, low, high = centred_interval(mean, resampled)
    centred = resampled - resampled.mean() + mean
    p = 2 * min(np.mean(centred <= 0), np.mean(centred >= 0))
    return Difference(mean, low, high, float(min(1.0, p)))


def paired_t(differences: np.ndarray) -> Difference:
    """The mean of paired differences (n,) with Student's interval and test; n = 1 gives an infinite
    interval."""
    mean = float(differences.mean())
    if len(differences) < 2:
        return Difference(mean, -math.inf, math.inf, math.nan)
    if np.ptp(differences) <= 1e-12 * abs(mean):  # the test would divide by the spread, which is zero
        return Difference(mean, mean, mean, 0.0 if mean else 1.0)
    test: Any = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(0.95)
    return Difference(mean, float(low), float(high), float(test.pvalue))
