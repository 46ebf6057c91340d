"""The plot of a study: losses step by step, or quality against time; where on the way from noise arms differ; and the
differences with their intervals."""

from pathlib import Path
from typing import Any

import numpy as np

from melody_jax.ablation.files import read_steps
from melody_jax.ablation.measures import ANGLES, METRICS
from melody_jax.ablation.statistics import Interval

DOTTED = 3
"""Metrics that have a panel of differences: the first ones of the study."""


def plot(findings: Any, path: Path) -> None:
    """Draws `findings` (report.py) into a PNG."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    metrics = findings.study.metrics[:DOTTED]
    first = 2 if findings.by_angle else 1
    size = (1.2 + 3.0 * (first + len(metrics)), 3.6)
    figure, axes = plt.subplots(1, first + len(metrics), figsize=size, layout="constrained", squeeze=False)
    trained = "seconds_training" in findings.costs[findings.study.baseline]
    (_curves if trained else _against_time)(axes[0, 0], findings)
    if findings.by_angle:
        _by_angle(axes[0, 1], findings)
    for axis, metric in zip(axes[0, first:], metrics, strict=True):
        _differences(axis, findings, metric)
    for axis in axes[0, first + 1 :]:
        axis.set_yticklabels([])
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=110)
    plt.close(figure)
    partial.replace(path)


def _curves(axis: Any, findings: Any) -> None:
    """The training loss of every seed, a running mean."""
    for number, (arm, folders) in enumerate(findings.folders.items()):
        for seed, folder in enumerate(folders):
            found = read_steps(folder)
            finite = np.isfinite(found["loss"])
            steps, loss = found["step"][finite], found["loss"][finite]
            span = max(1, len(loss) // 30)
            smooth = np.convolve(loss, np.ones(span) / span, "valid")
            steps = steps[span - 1 :] - (span - 1) / 2
            axis.plot(
                steps, smooth, color=f"C{number}", linewidth=0.9, alpha=0.8, label=arm if seed == 0 else None
            )
    axis.set(xscale="log")
    axis.set_xlabel("step", fontsize=8)
    axis.set_title("training loss, every seed", fontsize=8)
    axis.tick_params(which="both", labelsize=7)
    axis.legend(fontsize=7)


def _by_angle(axis: Any, findings: Any) -> None:
    """The velocity MSE of every seed at every angle, as a share of that of the arm beside it."""
    for number, (arm, values) in enumerate(findings.by_angle.items()):
        rival = findings.by_angle[findings.study.rival(arm)]
        axis.plot(ANGLES, (values / rival).T, color=f"C{number}", linewidth=0.9, alpha=0.8)
    axis.set_xlabel("angle, radians (1.57: pure noise)", fontsize=8)
    axis.set_title(f"velocity MSE by angle over {findings.study.baseline}'s", fontsize=8)
    axis.tick_params(labelsize=7)


def _against_time(axis: Any, findings: Any) -> None:
    """The first metric over the seconds of a window."""
    from matplotlib.ticker import LogLocator, NullLocator

    metric = findings.study.metrics[0]
    study, found = findings.study, findings.comparisons[metric]
    base = next(one.base_value for one in found if study.rival(one.arm) == study.baseline)
    values = {study.baseline: base} | {one.arm: one.value for one in found}
    for number, (arm, value) in enumerate(values.items()):
        seconds = findings.costs[arm]["seconds_window"]
        axis.plot(seconds, value, "o", color=f"C{number}")
        axis.annotate(arm, (seconds, value), fontsize=7, xytext=(4, 3), textcoords="offset points")
    axis.set(xlabel="seconds a window", xscale="log")
    axis.set_title(METRICS[metric].title, fontsize=8)
    axis.margins(x=0.3)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.tick_params(which="both", labelsize=7)


def _differences(axis: Any, findings: Any, metric: str) -> None:
    """Arm minus base: the interval over clips, over seeds, and thin those of each seed."""
    found = findings.comparisons[metric]
    for row, one in enumerate(found):
        for interval, offset, colour, size in (
            (one.clips, 0.18, "tab:blue", 5),
            (one.seeds, -0.02, "tab:orange", 5),
            *((each, -0.2 - 0.08 * i, "grey", 2) for i, each in enumerate(one.by_seed)),
        ):
            _interval(axis, interval, row - offset, colour, size)
    axis.axvline(0, color="black", linewidth=0.8)
    against = {one.arm: findings.study.rival(one.arm) for one in found}
    several = len(set(against.values())) > 1
    names = [f"{arm}\nbeside {other}" if several else arm for arm, other in against.items()]
    axis.set_yticks(range(len(found)), names, fontsize=7)
    axis.set_ylim(len(found) - 0.4, -0.6)
    better = METRICS[metric].better
    title = METRICS[metric].title.split(",")[0]
    base = "" if several else f" beside {findings.study.baseline}"
    axis.set_title(f"{title}{base}\n({better} is better)", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    axis.locator_params(axis="x", nbins=5)
    if metric == findings.study.metrics[0]:
        for label, colour in (
            ("over clips", "tab:blue"),
            ("over seeds", "tab:orange"),
            ("each seed", "grey"),
        ):
            axis.plot([], [], "o-", color=colour, label=label, markersize=4)
        axis.legend(fontsize=6, loc="best")


def _interval(axis: Any, interval: Interval, height: float, colour: str, size: float) -> None:
    if np.isfinite(interval.low):
        axis.plot([interval.low, interval.high], [height, height], color=colour, linewidth=size / 3)
    axis.plot(interval.mean, height, "o", color=colour, markersize=size)
