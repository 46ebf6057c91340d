"""The report of a study: Markdown, JSON and a plot, made from the files of its finished runs."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from melody_jax import __version__
from melody_jax.ablation.files import DIVERGED, read_json, results, save_json, short
from melody_jax.ablation.measures import ANGLES, METRICS
from melody_jax.ablation.paired_runs import Pairing, check_pairs
from melody_jax.ablation.plot import plot
from melody_jax.ablation.statistics import Comparison, Interval, compare
from melody_jax.ablation.study import Claim, Sampling, Study
from melody_jax.config_json import to_dict
from melody_jax.errors import UserError

COSTS = {
    "parameters": ("parameters, M", 1e-6),
    "passes": ("passes a window", 1),
    "flops_pass": ("GFLOP a pass", 1e-9),
    "flops_step": ("GFLOP a step", 1e-9),
    "flops_step_xla": ("of XLA's count", 1e-9),
    "steps": ("steps", 1),
    "seconds_step": ("s a step", 1),
    "seconds_training": ("minutes of training", 1 / 60),
    "seconds_window": ("s a window", 1),
    "bytes_peak": ("peak memory, MB", 1e-6),
}
"""Names in cost.json -> column, factor."""


class Findings(NamedTuple):
    """All that a report says, in numbers."""

    study: Study
    comparisons: dict[str, list[Comparison]]
    """Metric -> the arms beside the base."""
    pairings: dict[str, list[Pairing]]
    """Arm -> seed by seed."""
    costs: dict[str, dict[str, Any]]
    """Arm -> mean of what cost.json says, over seeds."""
    folders: dict[str, list[Path]]
    """Arm -> its runs, seed by seed."""
    lost: dict[str, str]
    """Arm -> why it is compared with nothing; it is in none of the other tables."""
    clips: int
    by_angle: dict[str, np.ndarray]
    """Arm -> (seeds, A) velocity MSE at each of `ANGLES`, mean over clips; empty where it was not measured."""


def report(study: Study, config: Any, runs: Sequence[Any]) -> Path:
    """Writes `<out>/<study>.md`, `.png` and `.json`, prints the tables, and returns the Markdown file.

    Raises:
        UserError: the runs are not paired, or so many diverged that nothing is left to compare.
    """
    findings = find(study, runs)
    out, name = Path(config.out), Path(config.study).stem
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(_lines(findings, name, command(config))) + "\n"
    plot(findings, out / f"{name}.png")
    save_json(out / f"{name}.json", _as_json(findings, command(config)))
    (out / f"{name}.md").write_text(text)
    print(text)
    return out / f"{name}.md"


def find(study: Study, runs: Sequence[Any]) -> Findings:
    """Reads what the runs left, checks that they are paired, and compares."""
    lost = _lost(study, runs)
    folders = {arm: [run.kept for run in runs if run.arm == arm] for arm in study.arms if arm not in lost}
    arrays = {arm: [results(folder) for folder in those] for arm, those in folders.items()}
    base, others = study.baseline, list(folders)[1:]
    pairings = {
        arm: check_pairs(arm, folders[arm], folders[study.rival(arm)], study.differs) for arm in others
    }
    comparisons = {
        metric: [compare(arm, metric, arrays[arm], arrays[study.rival(arm)]) for arm in others]
        for metric in study.metrics
    }
    costs = {
        arm: _mean_cost([read_json(folder / "cost.json") for folder in those])
        for arm, those in folders.items()
    }
    clips = max(len(array) for array in arrays[base][0].values())
    by_angle = {
        arm: np.stack([array["velocity_mse_by_angle"].mean(axis=0) for array in those])
        for arm, those in arrays.items()
        if all("velocity_mse_by_angle" in array for array in those)
    }
    return Findings(study, comparisons, pairings, costs, folders, lost, clips, by_angle)


def _lost(study: Study, runs: Sequence[Any]) -> dict[str, str]:
    """The arms of which a run diverged, and those that are compared with them; and why, in words."""
    ended: dict[str, list[str]] = {}
    for run in runs:
        if (run.kept / DIVERGED).is_file():
            steps = read_json(run.kept / DIVERGED)["steps"]
            ended.setdefault(run.arm, []).append(f"with seed {run.seed} after {steps:,} steps")
    lost = {arm: f"diverged {', '.join(those)}" for arm, those in ended.items()}
    for _ in study.arms:  # as far as `against` can reach
        lost |= {
            arm: f"is compared with {study.rival(arm)}"
            for arm in study.arms
            if arm not in lost and study.rival(arm) in lost
        }
    if not any(study.rival(arm) == study.baseline for arm in list(study.arms)[1:] if arm not in lost):
        told = "; ".join(f"{arm} {why}" for arm, why in lost.items())
        raise UserError(
            f"nothing is left to compare: {told}; to train a run again, delete {DIVERGED} in its folders"
        )
    return lost


def command(config: Any) -> str:
    """The command line that made the report; of folders the last two parts."""
    usual = type(config)()
    words = ["melody ablate", f"configs/ablations/{Path(config.study).name}"]
    for name in ("folder", "validation_folder", "networks", "steps"):
        value = getattr(config, name)
        if value != getattr(usual, name):
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{name}", *(short(str(one)) for one in values)]
    return " ".join(words)


def sentence(comparison: Comparison) -> str:
    """One comparison in words."""
    title, better = METRICS[comparison.metric].title, METRICS[comparison.metric].better
    verdict, c, s = comparison.verdict(better), comparison.clips, comparison.seeds
    intervals = f"{_span(c)} over clips, {_span(s)} over seeds"
    if verdict == "settles nothing":
        return f"{title}: settles nothing ({_signed(c.mean)}; {intervals})."
    way = "lower" if c.mean < 0 else "higher"
    return f"{title}: {verdict}, {way} by {_number(abs(c.mean))} ({intervals})."


def hold_against(claim: Claim, comparison: Comparison) -> str:
    """What the paper says of an arm beside what was found."""
    verdict = comparison.verdict(METRICS[claim.metric].better)
    if verdict == "settles nothing":
        ours = "this small study settles nothing about it"
    elif verdict == claim.says:
        ours = "so it is here"
    else:
        ours = f"here it is {verdict}: **our small-scale result disagrees with the paper's**"
    return f"- {claim.source}: {claim.arm} is {claim.says} in {METRICS[claim.metric].title}; {ours}."


def _lines(findings: Findings, name: str, command: str) -> Iterator[str]:
    study = findings.study
    seeds = len(next(iter(findings.folders.values())))
    yield from (f"# {study.title}", "", study.question, "")
    clips = (
        "prompts of the test split"
        if isinstance(study.base, Sampling)
        else "held-out recordings of composed music"
    )
    yield (
        f"Base: {study.baseline}. {seeds} seeds an arm, {findings.clips} {clips}. Small-scale, on our own data; "
        "the paper's figures are of networks and recordings that nobody else has, and are quoted as the paper's. "
        f"{study.limits}"
    ).rstrip()
    yield from ("", f"![Curves and differences]({name}.png)", "", "## What was found", "")
    for arm, why in findings.lost.items():
        yield from (f"**{arm}** {why}: no comparison.", "")
    for arm in list(findings.folders)[1:]:
        yield f"**{arm}** beside {study.rival(arm)}:"
        yield ""
        for metric in study.metrics:
            yield f"- {sentence(_of(findings, arm, metric))}"
        yield ""
    claims = [claim for claim in study.claims if claim.arm not in findings.lost]
    if claims:
        yield from ("## Beside the paper", "")
        yield from (hold_against(claim, _of(findings, claim.arm, claim.metric)) for claim in claims)
        yield ""
    yield from _tables(findings)
    yield from _angle_table(findings)
    yield from _cost_table(findings)
    yield from ("## How far the runs are paired", "", *_pairing_lines(findings), "")
    yield from ("## Arms", "", "| arm | replaces |", "| --- | --- |")
    for arm, changes in study.arms.items():
        told = "; ".join(f"`{field}` {_told(value)}" for field, value in changes.items()) or "nothing"
        yield f"| {arm} | {told} |"
    yield from ("", "## The command", "", "```sh", command, "```", "")
    yield (
        "Intervals are 95 %, Student's t: over clips, of differences averaged over seeds; over seeds, of differences "
        "averaged over clips. An arm is called better or worse when both leave out zero. p is of the paired t tests, "
        f"not corrected for their number. melody_jax {__version__}."
    )


def _tables(findings: Findings) -> Iterator[str]:
    study = findings.study
    for metric in study.metrics:
        title, better = METRICS[metric].title, METRICS[metric].better
        comparisons = findings.comparisons[metric]
        yield from (f"### {title[0].upper()}{title[1:]} ({better} is better)", "")
        yield "| arm | mean | beside | difference | over clips | over seeds | p, clips | p, seeds | clips, by seed | |"
        yield f"|{' --- |' * 10}"
        yield f"| {study.baseline} | {_number(base_value(findings, metric))} |{' |' * 8}"
        for found in comparisons:
            c, s = found.clips, found.seeds
            cells = (
                found.arm,
                _number(found.value),
                study.rival(found.arm),
                _signed(c.mean),
                _span(c),
                _span(s),
                _p(c.p),
                _p(s.p),
            )
            each = "; ".join(_span(one) for one in found.by_seed)
            yield f"| {' | '.join(cells)} | {each} | {found.verdict(better)} |"
        yield ""


def _angle_table(findings: Findings) -> Iterator[str]:
    if not findings.by_angle:
        return
    yield from (
        "### Velocity MSE by angle",
        "",
        f"| arm | {' | '.join(f'{angle:.2f}' for angle in ANGLES)} |",
    )
    yield f"| --- |{' --- |' * len(ANGLES)}"
    for arm, values in findings.by_angle.items():
        yield f"| {arm} | {' | '.join(map(_number, values.mean(axis=0)))} |"
    yield from (
        "",
        "One angle for the whole window, radians: 0 is clean, 1.57 pure noise. Means over clips and seeds.",
        "",
    )


def _cost_table(findings: Findings) -> Iterator[str]:
    columns = [name for name in COSTS if all(name in cost for cost in findings.costs.values())]
    yield from ("## Cost", "", f"| arm | {' | '.join(COSTS[name][0] for name in columns)} |")
    yield f"| --- |{' --- |' * len(columns)}"
    for arm, cost in findings.costs.items():
        yield f"| {arm} | {' | '.join(f'{cost[name] * COSTS[name][1]:.4g}' for name in columns)} |"
    if "seconds_training" in columns:
        total = sum(
            cost["seconds_training"] * len(findings.folders[arm]) for arm, cost in findings.costs.items()
        )
        yield ""
        yield (
            f"All runs together: {total / 3600:.1f} hours of training steps, runs shared with other studies included. "
            "FLOPs are of matrix products and convolutions, each round of a loop counted; XLA counts a loop once."
        )
    cost = findings.costs[findings.study.baseline]
    yield from ("", f"Times are of {cost['device']}, {cost['threads']:.0f} thread(s) a process.", "")


def _pairing_lines(findings: Findings) -> Iterator[str]:
    study = findings.study
    what = "batches of clips" if isinstance(study.base, Sampling) else "steps"
    for arm, pairings in findings.pairings.items():
        steps, different = (
            sum(pairing.steps for pairing in pairings),
            {n for one in pairings for n in one.different},
        )
        shared = ", ".join(name for name in pairings[0].shared if name not in different)
        line = f"- {arm} and {study.rival(arm)}: equal to the bit at all {steps:,} {what} of all seeds: {shared}."
        if different:
            line += f" Different, as the arm means it: {', '.join(sorted(different))}."
        yield line


def base_value(findings: Findings, metric: str) -> float:
    """The mean of the first arm."""
    study = findings.study
    return next(
        one.base_value for one in findings.comparisons[metric] if study.rival(one.arm) == study.baseline
    )


def _of(findings: Findings, arm: str, metric: str) -> Comparison:
    return next(found for found in findings.comparisons[metric] if found.arm == arm)


def _mean_cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers averaged over seeds; words as the first says."""
    return {
        name: float(np.mean([cost[name] for cost in costs])) if isinstance(value, int | float) else value
        for name, value in costs[0].items()
    }


def _as_json(findings: Findings, command: str) -> dict[str, Any]:
    study = findings.study
    rows = [
        found._asdict()
        | {"clips": found.clips._asdict(), "seeds": found.seeds._asdict()}
        | {"by_seed": [one._asdict() for one in found.by_seed]}
        | {"verdict": found.verdict(METRICS[metric].better)}
        for metric, those in findings.comparisons.items()
        for found in those
    ]
    described = {
        "command": command,
        "version": __version__,
        "title": study.title,
        "base": to_dict(study.base),
        "arms": {
            arm: {field: to_dict(value) for field, value in changes.items()}
            for arm, changes in study.arms.items()
        },
        "seeds": study.seeds,
        "held_out_clips": findings.clips,
        "lost": findings.lost,
        "costs": findings.costs,
        "pairing": {
            arm: [pairing._asdict() for pairing in those] for arm, those in findings.pairings.items()
        },
        "comparisons": rows,
        "velocity_mse_by_angle": {arm: values.tolist() for arm, values in findings.by_angle.items()},
    }
    return _finite(described)


def _finite(value: Any) -> Any:
    """JSON has no infinities."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _told(value: Any) -> str:
    return type(value).__name__ if dataclasses.is_dataclass(value) else str(value)


def _number(x: float) -> str:
    return f"{x:.4g}"


def _signed(x: float) -> str:
    return f"{x:+.3g}"


def _span(interval: Interval) -> str:
    if not math.isfinite(interval.low):
        return "no interval"
    return f"{_signed(interval.low)} to {_signed(interval.high)}"


def _p(p: float) -> str:
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
