"""Paired comparisons: does an arm differ from its reference arm, over these clips and over seeds?

Held-out clips and seeds are both samples, so every difference has two 95 % intervals:

  clips   Student's t over clips, of differences averaged over seeds: how the difference varies with other clips, for
          the runs at hand. Every seed has such an interval of its own too.
  seeds   Student's t over seeds, of differences averaged over clips: how the difference varies with other seeds.

An arm is "better" or "worse" if both intervals exclude zero; otherwise the comparison is "not significant".
The p values are those of the paired t tests, without a correction for multiple comparisons. A kernel
distance belongs to a whole set of clips: its interval over clips is a bootstrap that draws the same clips for
both arms, and no clip is compared with its own original. (A Fréchet distance would need many more clips than an
embedding has dimensions; studies have fewer.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from melody_jax.ablation.results import Arrays
from melody_jax.evaluation.intervals import Difference, paired_bootstrap, paired_t
from melody_jax.evaluation.kernel import paired_distance, paired_terms
from melody_jax.evaluation.threads import single_blas_thread

DRAWS = 200
"""Bootstrap resamples."""
NOT_SIGNIFICANT = "not significant"
SET_METRICS = {
    "kernel_distance": "embeddings",
    "prompt_kernel_distance": "embeddings",
    "prompt_kernel_distance_log_mel": "log_mel",
}
"""Metric of a whole set of clips -> its array NAME; with "true_NAME" they are the points, (N, E) or (N, W, E)."""


class Comparison(NamedTuple):
    """One arm against its reference arm in one metric; differences are arm minus reference."""

    arm: str
    metric: str
    value: float
    """Mean of the arm over clips and seeds."""
    base_value: float
    """Mean of the reference arm."""
    clips: Difference
    """Over clips."""
    seeds: Difference
    """Over seeds."""
    by_seed: list[Difference]
    """Over clips, for every seed alone."""

    @property
    def is_significant(self) -> bool:
        """Whether both intervals exclude zero."""
        return not (self.clips.contains_zero or self.seeds.contains_zero)

    def outcome(self, better: str) -> str:
        """ "better", "worse" or "not significant"; `better` is "lower" or "higher"."""
        if not self.is_significant:
            return NOT_SIGNIFICANT
        return "better" if (self.clips.mean < 0) == (better == "lower") else "worse"


def compare(arm: str, metric: str, runs: Sequence[Arrays], base_runs: Sequence[Arrays]) -> Comparison:
    """Compares an arm with its reference arm: one mapping of arrays per seed, seeds and clips in the same
    order."""
    if metric in SET_METRICS:
        return _compare_sets(arm, metric, runs, base_runs)
    values = np.stack([arrays[metric] for arrays in runs]).astype(np.float64)
    base_values = np.stack([arrays[metric] for arrays in base_runs]).astype(np.float64)
    differences = values - base_values  # (seeds, clips)
    return Comparison(
        arm=arm,
        metric=metric,
        value=float(values.mean()),
        base_value=float(base_values.mean()),
        clips=paired_t(differences.mean(axis=0)),
        seeds=paired_t(differences.mean(axis=1)),
        by_seed=[paired_t(row) for row in differences],
    )


def _compare_sets(arm: str, metric: str, runs: Sequence[Arrays], base_runs: Sequence[Arrays]) -> Comparison:
    count = len(runs[0][SET_METRICS[metric]])
    once = np.ones(count)
    resampled_counts = np.random.default_rng(0).multinomial(count, once / count, DRAWS)
    resampled_counts = resampled_counts[(resampled_counts > 0).sum(axis=1) > 1]  # a distance needs two clips
    with single_blas_thread():
        terms = [_terms(run, metric) for run in runs]
        base_terms = [_terms(run, metric) for run in base_runs]
    values = np.array([paired_distance(rows, once) for rows in terms])
    base_values = np.array([paired_distance(rows, once) for rows in base_terms])
    resampled = np.stack(
        [
            paired_distance(rows, resampled_counts) - paired_distance(base_rows, resampled_counts)
            for rows, base_rows in zip(terms, base_terms, strict=True)
        ],
        axis=1,
    )
    differences = values - base_values
    return Comparison(
        arm=arm,
        metric=metric,
        value=float(values.mean()),
        base_value=float(base_values.mean()),
        clips=paired_bootstrap(float(differences.mean()), resampled.mean(axis=1)),
        seeds=paired_t(differences),
        by_seed=[paired_bootstrap(float(d), resampled[:, seed]) for seed, d in enumerate(differences)],
    )


def _terms(run: Arrays, metric: str) -> np.ndarray:
    """The terms (N, N) of a run's kernel distance."""
    name = SET_METRICS[metric]
    count, width = run[name].shape[0], run[name].shape[-1]
    generated, true = (run[array].reshape(count, -1, width) for array in (name, f"true_{name}"))
    return paired_terms(generated, true)
