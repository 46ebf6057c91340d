"""The Fréchet distance beside its closed form."""

import numpy as np
import pytest
import scipy.linalg

from melody_jax.errors import UserError
from melody_jax.evaluation.frechet import Moments, clip_distances, extrapolated, frechet_distance


def test_closed_forms() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6)).astype(np.float32)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(6 * 4, rel=1e-5)
    # with the same eigenvectors the distance is that of the standard deviations
    centred = x - x.mean(axis=0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * np.trace(np.cov(x.T)), rel=1e-5)
    few = rng.normal(size=(4, 6))  # singular covariances
    assert frechet_distance(few, 3 * few - 2 * few.mean(axis=0)) == pytest.approx(
        4 * np.trace(np.cov(few.T)), rel=1e-6
    )
    y = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6))
    product = np.linalg.eigvals(np.cov(x.T) @ np.cov(y.T))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T)) + np.trace(np.cov(y.T))
    assert frechet_distance(x, y) == pytest.approx(expected - 2 * np.sqrt(product.real).sum(), rel=1e-5)


def test_what_has_no_distance_is_refused() -> None:
    for shape in ((1, 6), (5, 7), (6,)):
        with pytest.raises(UserError, match=r"must be (\(items|equal)"):
            frechet_distance(np.zeros((5, 6)), np.zeros(shape))


def test_agrees_with_the_matrix_square_root() -> None:
    rng = np.random.default_rng(1)
    for count, width in ((400, 16), (60, 128)):  # the second has singular covariances
        x = rng.normal(size=(count, width)) @ rng.normal(size=(width, width))
        y = rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + 0.5
        root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
        expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
        assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-3)


def test_extrapolation_takes_the_bias_out() -> None:
    rng = np.random.default_rng(3)
    width = 32
    reference = Moments(np.zeros(width), np.eye(width))
    result = [extrapolated(rng.normal(0.3, 1, size=(400, width)), reference) for _ in range(5)]
    finite = [frechet_distance(rng.normal(0.3, 1, size=(400, width)), reference) for _ in range(5)]
    true = width * 0.09
    assert abs(np.mean([one.value for one in result if one]) - true) < 0.25 * (np.mean(finite) - true)
    assert all(one and one.fit > 0.9 for one in result)
    assert extrapolated(rng.normal(size=(63, width)), reference) is None


def test_a_clip_is_as_far_as_a_set_without_spread() -> None:
    rng = np.random.default_rng(4)
    reference = Moments.of(rng.normal(size=(50, 4)))
    clip = np.array([1.0, 2.0, 3.0, 4.0])
    expected = frechet_distance(np.stack([clip, clip]), reference)
    assert clip_distances(clip[None], reference)[0] == pytest.approx(expected)
