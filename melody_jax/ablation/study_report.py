"""The report of a study: Markdown, JSON and a plot, made from the results of its finished runs."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from melody_jax import __version__, files
from melody_jax.ablation.files import short_path
from melody_jax.ablation.findings import Findings, find
from melody_jax.ablation.measures import ANGLES, METRICS
from melody_jax.ablation.plot import plot
from melody_jax.ablation.results import RunResult
from melody_jax.ablation.runs import AblateConfig, Run
from melody_jax.ablation.statistics import NOT_SIGNIFICANT, Comparison
from melody_jax.ablation.study import Claim, Sampling, Study
from melody_jax.config_json import to_dict
from melody_jax.evaluation.intervals import Difference
from melody_jax.python_file import shipped_names

COSTS = {
    "parameters": ("parameters, M", 1e-6),
    "nfe": ("network passes per window", 1),
    "flops_pass": ("GFLOP per pass", 1e-9),
    "flops_step": ("GFLOP per training step", 1e-9),
    "flops_step_xla": ("GFLOP per training step, XLA's count", 1e-9),
    "steps": ("training steps", 1),
    "seconds_step": ("seconds per training step", 1),
    "seconds_training": ("training time, minutes", 1 / 60),
    "seconds_window": ("seconds per window", 1),
    "nfe_clip": ("network passes per clip, without guidance", 1),
    "nfe_30_seconds": ("network passes per 30 s, without guidance", 1),
    "flops_second": ("GFLOP per second of music, guided", 1e-9),
    "seconds_clip": ("seconds per clip", 1),
    "seconds_clip_batch": ("seconds per clip in a batch of 16", 1),
    "bytes_peak": ("peak memory, MB", 1e-6),
}
"""Name in cost.json -> column header and factor."""


def write_report(
    study: Study, config: AblateConfig, runs: Sequence[Run], results: Mapping[str, RunResult]
) -> Path:
    """Writes `<out>/<study>.md`, `.png` and `.json`, prints the Markdown and returns its file.

    Raises:
        UserError: the runs are not paired, or so many diverged that no comparison remains.
    """
    findings = find(study, runs, results)
    out = Path(config.out)
    files.make_folder(out)
    text = "\n".join(_lines(findings, config.name, command_line(config))) + "\n"
    plot(findings, out / f"{config.name}.png")
    files.write_json(out / f"{config.name}.json", _to_json(findings, command_line(config)))
    files.write_bytes(out / f"{config.name}.md", text.encode())
    print(text)
    return out / f"{config.name}.md"


def command_line(config: AblateConfig) -> str:
    """The command that makes the report; of folders the last two parts."""
    defaults = AblateConfig()
    is_shipped = config.name in shipped_names("study")
    words = ["melody ablate", config.name if is_shipped else short_path(config.study)]
    for name in ("folder", "validation_folder", "networks", "releases", "steps"):
        value = getattr(config, name)
        if value != getattr(defaults, name):
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{name.replace('_', '-')}", *(short_path(str(one)) for one in values)]
    return " ".join(words)


def sentence(comparison: Comparison) -> str:
    """One comparison in words."""
    metric = METRICS[comparison.metric]
    outcome = comparison.outcome(metric.better)
    clips = comparison.clips
    intervals = f"{_span(clips)} over clips, {_span(comparison.seeds)} over seeds"
    if outcome == NOT_SIGNIFICANT:
        return f"{metric.title}: not significant ({_signed(clips.mean)}; {intervals})."
    direction = "lower" if clips.mean < 0 else "higher"
    return f"{metric.title}: {outcome}, {direction} by {_number(abs(clips.mean))} ({intervals})."


def check_claim(claim: Claim, comparison: Comparison) -> str:
    """The paper's claim about an arm, and whether the comparison agrees with it."""
    outcome = comparison.outcome(METRICS[claim.metric].better)
    if outcome == NOT_SIGNIFICANT:
        agreement = "the difference is not significant in this small study"
    elif outcome == claim.says:
        agreement = "this study agrees"
    else:
        agreement = f"here it is {outcome}: **this small-scale study disagrees with the paper**"
    return f"- {claim.source}: {claim.arm} is {claim.says} in {METRICS[claim.metric].title}; {agreement}."


def _lines(findings: Findings, name: str, command: str) -> Iterator[str]:
    yield from _introduction(findings, name)
    yield from _verdicts(findings)
    yield from _claims(findings)
    for metric in findings.study.metrics:
        yield from _metric_table(findings, metric)
    yield from _angle_table(findings)
    yield from _cost_table(findings)
    yield from ("## Pairing", "", *_pairing_lines(findings), "")
    yield from _arms_table(findings.study)
    yield from ("", "## Command", "", "```sh", command, "```", "")
    yield (
        "Intervals are 95 %, by Student's t: over clips, of differences averaged over seeds; over seeds, of "
        'differences averaged over clips. An arm is "better" or "worse" if both intervals exclude zero, otherwise '
        'the difference is "not significant". The p values are those of the paired t tests, without a correction for '
        "multiple comparisons. A kernel distance (KAD) has bootstrap intervals over clips. "
        f"melody_jax {__version__}."
    )


def _introduction(findings: Findings, name: str) -> Iterator[str]:
    study = findings.study
    yield from (f"# {study.title}", "", study.question, "")
    seeds = len(findings.results[study.baseline])
    clips = (
        "prompts of the test split"
        if isinstance(study.base, Sampling)
        else "held-out recordings of composed music"
    )
    yield (
        f"Reference arm: {study.baseline}. Each arm has {seeds} seeds and is measured on {findings.clips} {clips}. "
        "The study is small and uses our own data. Figures of the paper are for networks and recordings that are not "
        f"public. {study.limits}"
    ).rstrip()
    yield from ("", f"![Training or sampling curves and differences]({name}.png)", "")


def _verdicts(findings: Findings) -> Iterator[str]:
    study = findings.study
    yield from ("## Results", "")
    for arm, reason in findings.excluded.items():
        yield from (f"**{arm}** {reason}: no comparison.", "")
    for arm in findings.pairings:
        yield from (f"**{arm}** compared with {study.reference_arm(arm)}:", "")
        for metric in study.metrics:
            yield f"- {sentence(findings.comparison(arm, metric))}"
        yield ""


def _claims(findings: Findings) -> Iterator[str]:
    claims = [claim for claim in findings.study.claims if claim.arm not in findings.excluded]
    if claims:
        yield from ("## Comparison with the paper", "")
        yield from (check_claim(claim, findings.comparison(claim.arm, claim.metric)) for claim in claims)
        yield ""


def _metric_table(findings: Findings, metric: str) -> Iterator[str]:
    study = findings.study
    title = METRICS[metric].title
    better = METRICS[metric].better
    header = (
        "arm", "mean", "reference arm", "difference", "95 % interval over clips", "95 % interval over seeds",
        "p over clips", "p over seeds", "95 % interval over clips, per seed", "verdict",
    )  # fmt: skip
    yield from (f"### {title[0].upper()}{title[1:]} ({better} is better)", "")
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    yield f"| {study.baseline} | {_number(findings.base_value(metric))} |{' |' * (len(header) - 2)}"
    for comparison in findings.comparisons[metric]:
        cells = (
            comparison.arm,
            _number(comparison.value),
            study.reference_arm(comparison.arm),
            _signed(comparison.clips.mean),
            _span(comparison.clips),
            _span(comparison.seeds),
            _p(comparison.clips.p),
            _p(comparison.seeds.p),
            "; ".join(_span(difference) for difference in comparison.by_seed),
            comparison.outcome(better),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def _angle_table(findings: Findings) -> Iterator[str]:
    if not findings.mse_by_angle:
        return
    header = " | ".join(f"{angle:.2f}" for angle in ANGLES)
    yield from ("### Velocity MSE by angle", "", f"| arm | {header} |")
    yield f"| --- |{' --- |' * len(ANGLES)}"
    for arm, values in findings.mse_by_angle.items():
        yield f"| {arm} | {' | '.join(map(_number, values.mean(axis=0)))} |"
    note = "One angle in radians for the whole window: 0 is clean, 1.57 is pure noise. Means over clips and seeds."
    yield from ("", note, "")


def _cost_table(findings: Findings) -> Iterator[str]:
    columns = [name for name in COSTS if all(name in cost for cost in findings.costs.values())]
    yield from ("## Cost", "", f"| arm | {' | '.join(COSTS[name][0] for name in columns)} |")
    yield f"| --- |{' --- |' * len(columns)}"
    for arm, cost in findings.costs.items():
        yield f"| {arm} | {' | '.join(f'{cost[name] * COSTS[name][1]:.4g}' for name in columns)} |"
    if "seconds_training" in columns:
        seconds = sum(
            cost["seconds_training"] * len(findings.results[arm]) for arm, cost in findings.costs.items()
        )
        yield ""
        yield (
            f"Training steps of all runs took {seconds / 3600:.1f} hours, including runs that other studies share. "
            "FLOPs count matrix products and convolutions in every iteration of a loop; XLA counts a loop body once."
        )
    cost = findings.costs[findings.study.baseline]
    yield from (
        "",
        f"Times were measured on {cost['device']} with {cost['threads']:.0f} thread(s) per process.",
        "",
    )


def _pairing_lines(findings: Findings) -> Iterator[str]:
    study = findings.study
    unit = "batches of clips" if isinstance(study.base, Sampling) else "steps"
    for arm, pairings in findings.pairings.items():
        steps = sum(pairing.steps for pairing in pairings)
        different = {name for pairing in pairings for name in pairing.different}
        equal = ", ".join(name for name in pairings[0].equal if name not in different)
        reference = study.reference_arm(arm)
        line = f"- {arm} and {reference}: bit-identical in all {steps:,} {unit} of all seeds: {equal}."
        if different:
            line += f" Different on purpose: {', '.join(sorted(different))}."
        yield line


def _arms_table(study: Study) -> Iterator[str]:
    yield from ("## Arms", "", "| arm | replaced fields |", "| --- | --- |")
    for arm, changes in study.arms.items():
        fields = "; ".join(f"`{field}` {_field_value(value)}" for field, value in changes.items())
        yield f"| {arm} | {fields or 'none'} |"


def _to_json(findings: Findings, command: str) -> dict[str, Any]:
    study = findings.study
    rows = [
        comparison._asdict()
        | {"clips": comparison.clips._asdict(), "seeds": comparison.seeds._asdict()}
        | {"by_seed": [difference._asdict() for difference in comparison.by_seed]}
        | {"verdict": comparison.outcome(METRICS[metric].better)}
        for metric, comparisons in findings.comparisons.items()
        for comparison in comparisons
    ]
    values = {
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
        "excluded": findings.excluded,
        "costs": findings.costs,
        "pairing": {
            arm: [pairing._asdict() for pairing in pairings] for arm, pairings in findings.pairings.items()
        },
        "comparisons": rows,
        "velocity_mse_by_angle": {arm: values.tolist() for arm, values in findings.mse_by_angle.items()},
    }
    return _finite(values)


def _finite(value: Any) -> Any:
    """Replaces infinities and nan, which JSON does not have, with None."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _field_value(value: Any) -> str:
    return type(value).__name__ if dataclasses.is_dataclass(value) else str(value)


def _number(x: float) -> str:
    return f"{x:.4g}"


def _signed(x: float) -> str:
    return f"{x:+.3g}"


def _span(difference: Difference) -> str:
    if not math.isfinite(difference.low):
        return "no interval"
    return f"{_signed(difference.low)} to {_signed(difference.high)}"


def _p(p: float) -> str:
    if math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
