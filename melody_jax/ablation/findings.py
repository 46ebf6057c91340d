"""What a study found, in numbers: comparisons, pairings and costs of its finished runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from melody_jax.ablation.paired_runs import Pairing, check_pairs
from melody_jax.ablation.results import RunResult
from melody_jax.ablation.runs import Run
from melody_jax.ablation.statistics import Comparison, compare
from melody_jax.ablation.study import Study
from melody_jax.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """Everything that a report says."""

    study: Study
    comparisons: dict[str, list[Comparison]]
    """Metric -> every arm against its reference arm."""
    pairings: dict[str, list[Pairing]]
    """Arm -> pairing with its reference arm, seed by seed."""
    costs: dict[str, dict[str, Any]]
    """Arm -> means of cost.json over seeds."""
    results: dict[str, list[RunResult]]
    """Arm -> its runs, seed by seed."""
    excluded: dict[str, str]
    """Arm that is in none of the tables -> why: a run of it, or of its reference arm, diverged."""
    clips: int
    """Number of held-out clips, or of prompts."""
    mse_by_angle: dict[str, np.ndarray]
    """Arm -> velocity MSE (seeds, A) at each of `ANGLES`, mean over clips; empty if not measured."""

    def comparison(self, arm: str, metric: str) -> Comparison:
        """The comparison of one arm in one metric."""
        return next(one for one in self.comparisons[metric] if one.arm == arm)

    def base_value(self, metric: str) -> float:
        """The mean of the study's first arm."""
        study = self.study
        return next(
            one.base_value
            for one in self.comparisons[metric]
            if study.reference_arm(one.arm) == study.baseline
        )


def find(study: Study, runs: Sequence[Run], results: Mapping[str, RunResult]) -> Findings:
    """Checks that the runs are paired and compares them; `results` holds the result of every run by its name.

    Raises:
        UserError: the runs are not paired, or so many diverged that no comparison remains.
    """
    excluded = _excluded_arms(study, runs, results)
    by_arm = {
        arm: [results[run.name] for run in runs if run.arm == arm]
        for arm in study.arms
        if arm not in excluded
    }
    arrays = {arm: [result.arrays for result in arm_results] for arm, arm_results in by_arm.items()}
    others = [arm for arm in by_arm if arm != study.baseline]
    by_angle = {
        arm: np.stack([array["velocity_mse_by_angle"].mean(axis=0) for array in arm_arrays])
        for arm, arm_arrays in arrays.items()
        if all("velocity_mse_by_angle" in array for array in arm_arrays)
    }
    return Findings(
        study=study,
        comparisons={
            metric: [compare(arm, metric, arrays[arm], arrays[study.reference_arm(arm)]) for arm in others]
            for metric in study.metrics
        },
        pairings={
            arm: check_pairs(by_arm[arm], by_arm[study.reference_arm(arm)], study.differs) for arm in others
        },
        costs={
            arm: _mean_cost([result.cost for result in arm_results]) for arm, arm_results in by_arm.items()
        },
        results=by_arm,
        excluded=excluded,
        clips=max(len(array) for array in arrays[study.baseline][0].values()),
        mse_by_angle=by_angle,
    )


def _excluded_arms(study: Study, runs: Sequence[Run], results: Mapping[str, RunResult]) -> dict[str, str]:
    """The arms with a diverged run and the arms that are compared with them -> the reason in words."""
    diverged: dict[str, list[str]] = {}
    for run in runs:
        steps = results[run.name].diverged_after
        if steps is not None:
            diverged.setdefault(run.arm, []).append(f"with seed {run.seed} after {steps:,} steps")
    excluded = {arm: f"diverged {', '.join(seeds)}" for arm, seeds in diverged.items()}
    for _ in study.arms:  # the longest possible chain of `against`
        excluded |= {
            arm: f"is compared with {study.reference_arm(arm)}"
            for arm in study.arms
            if arm not in excluded and study.reference_arm(arm) in excluded
        }
    others = [arm for arm in study.arms if arm != study.baseline and arm not in excluded]
    if not any(study.reference_arm(arm) == study.baseline for arm in others):
        reasons = "; ".join(f"{arm} {reason}" for arm, reason in excluded.items())
        raise UserError(
            f"nothing is left to compare: {reasons}; to train a run again, delete its folder and its line in the "
            "results file"
        )
    return excluded


def _mean_cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers are averaged over seeds; of text the first is taken."""
    return {
        name: float(np.mean([cost[name] for cost in costs])) if isinstance(value, int | float) else value
        for name, value in costs[0].items()
    }
