"""Parity with independent implementations: needs the `parity` extra, which `.ci/run` installs after the other tests.

Modules skip themselves where it is missing.
"""

from collections.abc import Iterator

import numpy as np
import pytest

TOLERANCE = 1e-4
"""Largest difference relative to the largest magnitude, float32."""

_worst: dict[str, float] = {}


class Compare:
    """Asserts that two arrays agree, and remembers how well."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, ours: object, theirs: object, tolerance: float = TOLERANCE) -> None:
        """Both are array-like; torch tensors are detached first."""
        ours, theirs = (np.asarray(x.detach() if hasattr(x, "detach") else x) for x in (ours, theirs))
        assert ours.shape == theirs.shape
        error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        _worst[self.name] = max(error, _worst.get(self.name, 0.0))
        assert error < tolerance, f"relative error {error:.1e}, allowed {tolerance:.0e}"


@pytest.fixture
def compare(request: pytest.FixtureRequest) -> Iterator[Compare]:
    """The worst relative error of each test is printed when it has passed."""
    comparison = Compare(request.node.name)
    yield comparison
    if comparison.name in _worst:
        print(f"\nparity {comparison.name}: worst relative error {_worst[comparison.name]:.1e}")
