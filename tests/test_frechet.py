"""The Fréchet distance beside its closed form."""

import numpy as np
import pytest

from melody_jax.errors import UserError
from melody_jax.evaluation.frechet import frechet_distance


def test_closed_forms() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6)).astype(np.float32)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(6 * 4, rel=1e-5)
    # with the same eigenvectors the distance is that of the standard deviations
    centred = x - x.mean(axis=0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * np.trace(np.cov(x.T)), rel=1e-5)
    few = rng.normal(size=(4, 6))  # singular covariances
    assert frechet_distance(few, 3 * few - 2 * few.mean(axis=0)) == pytest.approx(4 * np.trace(np.cov(few.T)), rel=1e-6)
    y = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6))
    product = np.linalg.eigvals(np.cov(x.T) @ np.cov(y.T))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T)) + np.trace(np.cov(y.T))
    assert frechet_distance(x, y) == pytest.approx(expected - 2 * np.sqrt(product.real).sum(), rel=1e-5)


def test_what_has_no_distance_is_refused() -> None:
    for shape in ((1, 6), (5, 7), (6,)):
        with pytest.raises(UserError, match="both must be"):
            frechet_distance(np.zeros((5, 6)), np.zeros(shape))
