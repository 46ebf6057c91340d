"""Bootstrap intervals against known intervals of means and sets."""

import numpy as np
import pytest

from melody_jax.evaluation.intervals import mean_interval, set_interval


def test_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    result = mean_interval(values)
    half = 1.96 * values.std() / 20
    assert result.value == pytest.approx(values.mean())
    assert result.low == pytest.approx(values.mean() - half, abs=0.03)
    assert result.high == pytest.approx(values.mean() + half, abs=0.03)


def test_sets_are_redrawn_apart_and_around_the_value() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(1, 1, 100)
    y = rng.normal(0, 1, 50)
    result = set_interval(lambda a, b: float(a.mean() - b.mean()), x, y, draws=400)
    assert result.value == pytest.approx(x.mean() - y.mean())
    half = 1.96 * np.sqrt(x.var() / 100 + y.var() / 50)
    assert (result.high - result.low) / 2 == pytest.approx(half, rel=0.15)
    assert set_interval(lambda a: float(len(np.unique(a))), x).value == 100  # redrawn sets have clips twice
    assert set_interval(lambda a: float(len(np.unique(a))), x).low > 80
