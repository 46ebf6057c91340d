"""Paired comparisons against SciPy's tests and hand-made cases."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist, pdist

from melody_jax.ablation.statistics import compare
from melody_jax.evaluation.intervals import paired_t

RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(3, 12))


def runs(values: np.ndarray, name: str = "m") -> list[dict[str, np.ndarray]]:
    return [{name: row} for row in values]


def test_both_intervals() -> None:
    values = BASE + 0.5 + 0.1 * RNG.normal(size=BASE.shape)
    comparison = compare("arm", "m", runs(values), runs(BASE))
    over_clips = stats.ttest_rel(values.mean(axis=0), BASE.mean(axis=0))
    over_seeds = stats.ttest_rel(values.mean(axis=1), BASE.mean(axis=1))
    assert comparison.clips[1:3] == pytest.approx(tuple(over_clips.confidence_interval()))
    assert comparison.seeds[1:3] == pytest.approx(tuple(over_seeds.confidence_interval()))
    assert comparison.clips.p == pytest.approx(over_clips.pvalue)
    assert [one.mean for one in comparison.by_seed] == pytest.approx((values - BASE).mean(axis=1))
    assert (comparison.outcome("lower"), comparison.outcome("higher")) == ("worse", "better")


def test_both_must_leave_out_zero() -> None:
    # all clips agree, seeds do not
    values = BASE + np.array([1.0, 1.2, -2.0])[:, None]
    by_clip = compare("arm", "m", runs(values), runs(BASE))
    assert not by_clip.clips.contains_zero
    assert by_clip.seeds.contains_zero
    assert by_clip.outcome("lower") == "not significant"


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rows = np.random.default_rng(1).normal(0.3, 1.0, (400, 6))
    covered = np.mean([low <= 0.3 <= high for _, low, high, _ in map(paired_t, rows)])
    assert 0.92 < covered < 0.98


def test_no_spread_and_one_seed() -> None:
    assert paired_t(np.full(5, 2.0)) == (2.0, 2.0, 2.0, 0.0)
    assert paired_t(np.zeros(5)).contains_zero
    assert paired_t(np.array([2.0]))[1:3] == (-math.inf, math.inf)
    assert compare("arm", "m", runs(BASE[:1] + 1), runs(BASE[:1])).outcome("lower") == "not significant"


def test_distances_of_whole_sets() -> None:
    true = RNG.normal(size=(40, 2, 3))

    def sets(shift: float) -> list[dict[str, np.ndarray]]:
        moved = [true + shift + 0.1 * RNG.normal(size=true.shape) for _ in range(3)]
        return [{"embeddings": generated, "true_embeddings": true} for generated in moved]

    arm = sets(1.0)
    comparison = compare("arm", "kernel_distance", arm, sets(0.0))
    expected = [discrepancy(run["embeddings"], true) for run in arm]
    assert comparison.value == pytest.approx(np.mean(expected), rel=1e-4)
    assert abs(comparison.base_value) < 0.5
    assert comparison.outcome("lower") == "worse"
    assert comparison.clips.low < comparison.clips.mean < comparison.clips.high


def test_a_copy_of_its_original_is_not_closer_in_distribution() -> None:
    """Sets of one distribution have the distance zero, whether clip i copies its original or is another piece."""
    true = RNG.normal(size=(200, 1, 3))
    copies, others = ([{"embeddings": x, "true_embeddings": true}] for x in (true, true[::-1]))
    comparison = compare("arm", "kernel_distance", copies, others)
    assert comparison.value == pytest.approx(0, abs=1e-4)
    assert comparison.base_value == pytest.approx(0, abs=0.5)


def discrepancy(generated: np.ndarray, reference: np.ndarray) -> float:
    """100 times the squared maximum mean discrepancy of a Gaussian kernel, over pairs of different clips."""
    width = np.median(pdist(reference.reshape(-1, reference.shape[-1])))
    total = 0.0
    for i, j in itertools.permutations(range(len(reference)), 2):
        kernels = [
            np.exp(-(cdist(x[i], y[j]) ** 2) / (2 * width**2)).mean()
            for x, y in itertools.product((generated, reference), repeat=2)
        ]
        total += kernels[0] - kernels[1] - kernels[2] + kernels[3]
    return 100 * total / (len(reference) * (len(reference) - 1))
