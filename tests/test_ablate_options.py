"""Options and metrics that do not fit a study are refused in one line, before anything runs."""

from collections.abc import Mapping
from typing import Any

import pytest

from melody_jax.ablation.runs import AblateConfig, runs_of
from melody_jax.ablation.study import Sampling, Study, SystemSampling
from melody_jax.ablation.study_report import command_line
from melody_jax.config import load_config
from melody_jax.errors import UserError

BASES: Mapping[str, Any] = {
    "training": load_config("dpd_tiny"),
    "sampling": Sampling(),
    "systems": SystemSampling(),
}
METRICS = {"training": "velocity_mse", "sampling": "group_right", "systems": "group_right"}


def study(kind: str, metric: str = "") -> Study:
    metrics = (metric or METRICS[kind],)
    return Study(title="t", question="?", base=BASES[kind], arms={"a": {}, "b": {}}, metrics=metrics)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("sampling", {"steps": 3}, "--steps 3: this study trains nothing; leave the option out"),
        ("sampling", {"networks": "release/mini"}, "--networks release/mini: this study trains nothing"),
        ("systems", {"folder": ("a", "b")}, "--folder a b: this study trains nothing"),
        ("systems", {"validation_folder": ("a",)}, "--validation-folder a: this study trains nothing"),
        ("sampling", {"releases": "release"}, "--releases release: this study samples a packaged release"),
        ("training", {"releases": "release"}, "--releases release: this study trains and samples no release"),
        ("training", {"folder": ("a",)}, "give folders of feature shards"),
    ],
)
def test_options_of_other_studies_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        next(runs_of(study(kind), AblateConfig(study="x", **options)))


@pytest.mark.parametrize("name", ["workers", "minutes", "steps"])
def test_negative_numbers_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is -1; it must be at least 0"):
        AblateConfig(study="steps", **{name: -1})


@pytest.mark.parametrize(
    ("kind", "metric", "message"),
    [
        ("training", "group_right", "metric 'group_right' in a study that trains; it can have velocity_mse"),
        (
            "sampling",
            "velocity_mse",
            "metric 'velocity_mse' in a study that samples a release; it can have group",
        ),
        ("systems", "kernel_distance", "metric 'kernel_distance' in a study that samples"),
        ("training", "loss", "unknown metric 'loss'; there are velocity_mse"),
    ],
)
def test_metrics_of_other_studies_are_refused(kind: str, metric: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        study(kind, metric)


def test_the_report_names_its_command() -> None:
    config = AblateConfig(study="systems", releases="/home/someone/release", steps=3)
    assert command_line(config) == "melody ablate systems --releases someone/release --steps 3"
