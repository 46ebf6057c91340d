"""Paired comparisons: does an arm differ from its reference arm, over these clips and over seeds?

Held-out clips and seeds are both samples, so every difference has two 95 % intervals:

  clips   Student's t over clips, of differences averaged over seeds: how the difference varies with other clips, for
          the runs at hand. Every seed has such an interval of its own too.
  seeds   Student's t over seeds, of differences averaged over clips: how the difference varies with other seeds.

An arm is "better" or "worse" if both intervals exclude zero; otherwise the comparison is "not significant".
The p values are those of the paired t tests, without a correction for multiple comparisons. A Fréchet
distance belongs to a whole set of clips: its interval over clips is a bootstrap that draws the same clips for
both arms.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from melody_jax.ablation.results import Arrays
from melody_jax.evaluation.frechet import frechet_distance
from melody_jax.evaluation.intervals import Difference, paired_bootstrap, paired_t
from melody_jax.evaluation.threads import single_blas_thread

DRAWS = 200
"""Bootstrap resamples."""
NOT_SIGNIFICANT = "not significant"
SET_METRICS = {
    "frechet": ("embeddings", "true_embeddings"),
    "prompt_frechet": ("embeddings", "true_embeddings"),
}
"""Metrics of a whole set -> the two arrays they compare, (N, E) or (N, W, E)."""


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
    generated, true = SET_METRICS[metric]
    clips = len(runs[0][generated])
    draws = np.random.default_rng(0).integers(0, clips, (DRAWS, clips))

    def distances(runs: Sequence[Arrays], rows: np.ndarray) -> np.ndarray:
        """(seeds,) distances of the clips in `rows`."""
        return np.array(
            [frechet_distance(_flatten(run[generated][rows]), _flatten(run[true][rows])) for run in runs]
        )

    all_clips = np.arange(clips)
    with single_blas_thread():
        values = distances(runs, all_clips)
        base_values = distances(base_runs, all_clips)
        resampled = np.stack([distances(runs, rows) - distances(base_runs, rows) for rows in draws])
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


def _flatten(embeddings: np.ndarray) -> np.ndarray:
    """(N, E) or (N, W, E) -> a set of embeddings (N * W, E)."""
    return embeddings.reshape(-1, embeddings.shape[-1])
