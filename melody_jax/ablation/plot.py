"""The plot of a study: training loss or quality against time, velocity MSE by angle, and differences with
intervals."""

from pathlib import Path
from typing import Any

import numpy as np

from melody_jax.ablation.findings import Findings
from melody_jax.ablation.measures import ANGLES, METRICS
from melody_jax.ablation.study import SystemSampling
from melody_jax.evaluation.intervals import Difference

DIFFERENCE_PANELS = 3
"""Metrics with a panel of differences: the first ones of the study."""


def plot(findings: Findings, path: Path) -> None:
    """Draws the findings into a PNG."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    metrics = findings.study.metrics[:DIFFERENCE_PANELS]
    first = 2 if findings.mse_by_angle else 1
    size = (1.2 + 3.0 * (first + len(metrics)), 3.6)
    figure, axes = plt.subplots(1, first + len(metrics), figsize=size, layout="constrained", squeeze=False)
    is_trained = "seconds_training" in findings.costs[findings.study.baseline]
    (_losses if is_trained else _quality_by_time)(axes[0, 0], findings)
    if findings.mse_by_angle:
        _by_angle(axes[0, 1], findings)
    for axis, metric in zip(axes[0, first:], metrics, strict=True):
        _differences(axis, findings, metric)
    for axis in axes[0, first + 1 :]:
        axis.set_yticklabels([])
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=110)
    plt.close(figure)
    partial.replace(path)


def _losses(axis: Any, findings: Findings) -> None:
    """The training loss of every run, as a running mean."""
    for number, (arm, results) in enumerate(findings.results.items()):
        for seed, result in enumerate(results):
            is_finite = np.isfinite(result.steps["loss"])
            steps = result.steps["step"][is_finite]
            loss = result.steps["loss"][is_finite]
            span = max(1, len(loss) // 30)
            smooth = np.convolve(loss, np.ones(span) / span, "valid")
            centres = steps[span - 1 :] - (span - 1) / 2
            label = arm if seed == 0 else None
            axis.plot(centres, smooth, color=f"C{number}", linewidth=0.9, alpha=0.8, label=label)
    axis.set(xscale="log")
    axis.set_xlabel("step", fontsize=8)
    axis.set_title("training loss, every seed", fontsize=8)
    axis.tick_params(which="both", labelsize=7)
    axis.legend(fontsize=7)


def _by_angle(axis: Any, findings: Findings) -> None:
    """The velocity MSE of every run at every angle, divided by that of the reference arm."""
    for number, (arm, values) in enumerate(findings.mse_by_angle.items()):
        reference = findings.mse_by_angle[findings.study.reference_arm(arm)]
        axis.plot(ANGLES, (values / reference).T, color=f"C{number}", linewidth=0.9, alpha=0.8)
    axis.set_xlabel("angle, radians (1.57: pure noise)", fontsize=8)
    axis.set_title(f"velocity MSE by angle / {findings.study.baseline}'s", fontsize=8)
    axis.tick_params(labelsize=7)


def _quality_by_time(axis: Any, findings: Findings) -> None:
    """The study's first metric against the seconds per window, or per clip in a study of systems."""
    from matplotlib.ticker import LogLocator, NullLocator

    metric = findings.study.metrics[0]
    values = {findings.study.baseline: findings.base_value(metric)}
    values |= {comparison.arm: comparison.value for comparison in findings.comparisons[metric]}
    unit = "clip" if isinstance(findings.study.base, SystemSampling) else "window"
    for number, (arm, value) in enumerate(values.items()):
        seconds = findings.costs[arm][f"seconds_{unit}"]
        axis.plot(seconds, value, "o", color=f"C{number}")
        axis.annotate(arm, (seconds, value), fontsize=7, xytext=(4, 3), textcoords="offset points")
    axis.set(xlabel=f"seconds per {unit}", xscale="log")
    axis.set_title(METRICS[metric].title, fontsize=8)
    axis.margins(x=0.3)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.tick_params(which="both", labelsize=7)


def _differences(axis: Any, findings: Findings, metric: str) -> None:
    """Arm minus reference arm: intervals over clips, over seeds and, thin, over the clips of each seed."""
    comparisons = findings.comparisons[metric]
    for row, comparison in enumerate(comparisons):
        _draw(axis, comparison.clips, row - 0.18, "tab:blue", 5)
        _draw(axis, comparison.seeds, row + 0.02, "tab:orange", 5)
        for seed, difference in enumerate(comparison.by_seed):
            _draw(axis, difference, row - (-0.2 - 0.08 * seed), "grey", 2)
    axis.axvline(0, color="black", linewidth=0.8)
    references = {one.arm: findings.study.reference_arm(one.arm) for one in comparisons}
    has_several = len(set(references.values())) > 1
    names = [f"{arm}\nvs {other}" if has_several else arm for arm, other in references.items()]
    axis.set_yticks(range(len(comparisons)), names, fontsize=7)
    axis.set_ylim(len(comparisons) - 0.4, -0.6)
    better = METRICS[metric].better
    title = METRICS[metric].title.split(",")[0]
    base = "" if has_several else f" vs {findings.study.baseline}"
    axis.set_title(f"{title}{base}\n({better} is better)", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    axis.locator_params(axis="x", nbins=5)
    if metric == findings.study.metrics[0]:
        _legend(axis)


def _legend(axis: Any) -> None:
    labels = {"over clips": "tab:blue", "over seeds": "tab:orange", "each seed": "grey"}
    for label, colour in labels.items():
        axis.plot([], [], "o-", color=colour, label=label, markersize=4)
    axis.legend(fontsize=6, loc="best")


def _draw(axis: Any, difference: Difference, height: float, colour: str, size: float) -> None:
    if np.isfinite(difference.low):
        axis.plot([difference.low, difference.high], [height, height], color=colour, linewidth=size / 3)
    axis.plot(difference.mean, height, "o", color=colour, markersize=size)
