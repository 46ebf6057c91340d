"""The kernel distance beside its definition, written out."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from melody_jax.errors import UserError
from melody_jax.evaluation import kernel
from melody_jax.evaluation.kernel import bandwidth, kernel_distance, kernel_interval


def test_is_the_unbiased_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0.5, 1, (30, 4))
    y = rng.normal(0, 1, (41, 4))
    width = np.median(pdist(y))
    assert bandwidth(y) == pytest.approx(width, rel=1e-5)
    within = [
        np.exp(-(cdist(z, z) ** 2) / (2 * width**2))[~np.eye(len(z), dtype=bool)].mean() for z in (x, y)
    ]
    expected = 100 * (sum(within) - 2 * np.exp(-(cdist(x, y) ** 2) / (2 * width**2)).mean())
    monkeypatch.setattr(kernel, "BLOCK", 7)  # several blocks, the last one short
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-4)


def test_is_around_zero_for_one_distribution_at_any_size() -> None:
    rng = np.random.default_rng(1)
    for count in (10, 100):
        result = [
            kernel_distance(rng.normal(size=(count, 8)), rng.normal(size=(count, 8))) for _ in range(60)
        ]
        assert abs(np.mean(result)) < 3 * np.std(result) / np.sqrt(60)


def test_interval_holds_the_value_and_tells_apart() -> None:
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(200, 8))
    same = kernel_interval(rng.normal(size=(200, 8)), reference, draws=50)
    other = kernel_interval(rng.normal(0.7, 1, size=(200, 8)), reference, draws=50)
    assert same.low < same.value < same.high < other.low < other.value < other.high
    assert same.low < 0 < same.high


def test_what_has_no_distance_is_refused() -> None:
    with pytest.raises(UserError, match="both must be"):
        kernel_distance(np.zeros((5, 6)), np.zeros((5, 7)))
