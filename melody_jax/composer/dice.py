"""Random choices for the composer: a deterministic stream per purpose, cheap enough for thousands of draws."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Dice:
    """Draws from `numpy.random.default_rng(entropy)`, in blocks, because a scalar NumPy draw costs microseconds."""

    def __init__(self, *entropy: int) -> None:
        self._rng = np.random.default_rng(list(entropy))
        self._pool: list[float] = []
        self._bells: list[float] = []

    def random(self) -> float:
        """A number in [0, 1)."""
        if not self._pool:
            self._pool = self._rng.random(256).tolist()
        return self._pool.pop()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.random() < probability

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.random()

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self.random() * (high - low + 1))

    def bell(self) -> float:
        """A normal number of mean 0 and standard deviation 1, held within 2.5."""
        if not self._bells:
            self._bells = self.bells(128).tolist()
        return self._bells.pop()

    def bells(self, count: int) -> np.ndarray:
        """Many of `bell` at once, float64 (count,)."""
        return self._rng.standard_normal(count).clip(-2.5, 2.5)

    def among(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(self.random() * len(options))]

    def pick(self, weights: Mapping[T, float]) -> T:
        """One of the keys, in proportion to its weight."""
        mark = self.random() * sum(weights.values())
        for key, weight in weights.items():
            mark -= weight
            if mark < 0:
                return key
        return next(reversed(list(weights)))
