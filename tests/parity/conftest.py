"""Parity with independent implementations: needs the `parity` extra, which `.ci/run` installs after the other tests.

Modules skip themselves where it is missing. The worst relative error of each test is printed at the end.
"""

from collections.abc import Callable

import numpy as np
import pytest

TOLERANCE = 1e-4
"""Largest difference relative to the largest magnitude, float32."""


@pytest.fixture
def compare(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Asserts that two arrays (or torch tensors) agree, and notes how well."""

    def check(ours: object, theirs: object, tolerance: float = TOLERANCE) -> None:
        ours, theirs = (np.asarray(x.detach() if hasattr(x, "detach") else x) for x in (ours, theirs))
        assert ours.shape == theirs.shape
        error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        request.node.user_properties.append(("relative_error", error))
        assert error < tolerance, f"relative error {error:.1e}, allowed {tolerance:.0e}"

    return check
