"""Random choices of the composer: a deterministic stream for each purpose, fast enough for thousands of draws."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Dice:
    """Draws from `numpy.random.default_rng(entropy)` in blocks, because each scalar NumPy draw takes microseconds."""

    def __init__(self, *entropy: int) -> None:
        self._rng = np.random.default_rng(list(entropy))
        self._pool: list[float] = []
        self._bells: list[float] = []

    def random(self) -> float:
        """Draws a number in [0, 1)."""
        if not self._pool:
            self._pool = self._rng.random(256).tolist()
        return self._pool.pop()

    def chance(self, probability: float) -> bool:
        """Returns true with the given probability."""
        return self.random() < probability

    def between(self, low: float, high: float) -> float:
        """Draws a number in [low, high)."""
        return low + (high - low) * self.random()

    def integer(self, low: int, high: int) -> int:
        """Draws an integer from `low` to `high`, inclusive."""
        return low + int(self.random() * (high - low + 1))

    def bell(self) -> float:
        """Draws from a normal distribution with mean 0 and standard deviation 1, clipped to +-2.5."""
        if not self._bells:
            self._bells = self.bells(128).tolist()
        return self._bells.pop()

    def bells(self, count: int) -> np.ndarray:
        """Draws `count` numbers like `bell`, float64 (count,)."""
        return self._rng.standard_normal(count).clip(-2.5, 2.5)

    def among(self, options: Sequence[T]) -> T:
        """Chooses one of the options uniformly."""
        return options[int(self.random() * len(options))]

    def pick(self, weights: Mapping[T, float]) -> T:
        """Chooses a key with a probability proportional to its weight."""
        mark = self.random() * sum(weights.values())
        for key, weight in weights.items():
            mark -= weight
            if mark < 0:
                return key
        return next(reversed(list(weights)))
