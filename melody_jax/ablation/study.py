"""The description of a study: a base config, arms that replace a few of its fields, seeds and metrics.

A study file is Python with `study() -> Study`. It is executed, so run only files that you trust. The base is
a `TrainConfig`, whose `steps` are the budget of every arm, or a `Sampling`, for questions that need no
training.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from melody_jax.config import TrainConfig
from melody_jax.config_json import to_dict
from melody_jax.errors import UserError
from melody_jax.options import option, replace_fields
from melody_jax.python_file import function_of
from melody_jax.sampling.settings import MAX_SECONDS, SamplingSettings
from melody_jax.systems import SYSTEMS

PLACES = (
    "workdir", "folder", "hosts", "watch", "data.folder", "data.validation_folder", "data.networks", "data.threads",
    "data.prefetch", "log_every", "eval_every", "eval_batches", "save_every", "save_minutes", "stop_minutes",
    "sigterm_seconds", "keep_last",
)  # fmt: skip
"""Fields of a `TrainConfig` that do not change what a run computes; they are no part of its name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(SamplingSettings):
    """How a released model makes clips of the committed prompts (melody_jax/assets/prompts.jsonl).

    Clip i has the seed `seed` times the number of prompts plus i.
    """

    model: str = "mini"
    """Name of the packaged release."""
    distilled: bool = False
    """Use the distilled diffusion, which has no guidance: one network pass per step instead of two."""
    guidance_rescale: float = option(0.0, least=0, most=1)
    """As in `SamplingSettings`; 0, as in the paper, if a study does not say otherwise."""
    prompts: int = 5
    """Prompts of each of the 16 groups: the first ones of the ten in the list."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemSampling(Sampling):
    """How a released model of any system makes clips of these prompts, language models and decoder included."""

    system: str = option("melody", choices=tuple(SYSTEMS))
    """Kind of the released model."""
    folder: str = ""
    """Folder of the release; empty: the packaged ones."""
    embedding: str = "mini"
    """Packaged release whose MuLan compares clips with prompts and pieces."""
    seconds: float = option(10.0, above=0, most=MAX_SECONDS)
    """Length of the clips."""
    guidance_rescale: float = option(SamplingSettings.guidance_rescale, least=0, most=1)
    """As in `SamplingSettings`, with its default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper claims of an arm, to be compared with the study's own result."""

    arm: str
    """Name of the arm."""
    metric: str
    """Name of the metric."""
    says: Literal["better", "worse", "no different"]
    """How the arm compares with its reference arm in the paper."""
    source: str
    """The table and its figures: "Table 5: 0.13 against 0.12"."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """One question, answered with paired runs."""

    title: str
    """Heading of the report."""
    question: str
    """The question, in a sentence or two."""
    base: Any
    """`TrainConfig` or `Sampling`."""
    arms: Mapping[str, Mapping[str, Any]]
    """Arm name -> {dotted field name: value}; the others are compared with the first arm."""
    metrics: tuple[str, ...]
    """Names of the reported metrics (`measures.METRICS`), the most important first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; one seed decides initialisation, data order and noise."""
    differs: tuple[str, ...] = ()
    """Draws that arms change on purpose ("angle", "tokens", ...); all others must be bit-identical."""
    against: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Arm -> its reference arm, where that is not the first arm."""
    claims: tuple[Claim, ...] = ()
    """The paper's claims."""
    limits: str = ""
    """Limits of the study that a reader must know."""

    def __post_init__(self) -> None:
        if not isinstance(self.base, TrainConfig | Sampling):
            raise UserError(f"base is {type(self.base).__name__}; it must be a TrainConfig or a Sampling")
        if len(self.arms) < 2 or not self.seeds or not self.metrics:
            raise UserError(f"study {self.title!r} needs at least two arms, one seed and one metric")
        self._check_metrics()
        named = {*self.against, *self.against.values()}
        others = [arm for arm in self.arms if arm != self.baseline]
        if not named <= set(self.arms) or set(others) <= set(self.against):
            raise UserError(
                f"against is {dict(self.against)}; it must name arms of the study and leave one for the first arm"
            )
        for claim in self.claims:
            if claim.arm not in self.arms or claim.metric not in self.metrics:
                raise UserError(f"claim about {claim.arm!r}, {claim.metric!r}: no such arm or no such metric")

    def _check_metrics(self) -> None:
        """Raises `UserError` for a metric that does not exist or that runs of this kind do not have."""
        from melody_jax.ablation.measures import METRICS, SAMPLED

        samples = isinstance(self.base, Sampling)
        valid = [name for name, metric in METRICS.items() if (metric.measure == SAMPLED) == samples]
        for name in self.metrics:
            if name not in METRICS:
                raise UserError(f"unknown metric {name!r}; there are {', '.join(valid)}")
            if name not in valid:
                kind = "samples a release" if samples else "trains"
                raise UserError(f"metric {name!r} in a study that {kind}; it can have {', '.join(valid)}")

    @property
    def baseline(self) -> str:
        """The first arm."""
        return next(iter(self.arms))

    def reference_arm(self, arm: str) -> str:
        """The arm that `arm` is compared with."""
        return self.against.get(arm, self.baseline)


def load_study(path: str | Path) -> Study:
    """The `Study` that the file's `study()` returns.

    Raises:
        UserError: there is no such file, it is no study, or an arm replaces a field that the base does not
        have.
    """
    study = function_of(path, "study")()
    if not isinstance(study, Study):
        raise UserError(f"{path}: study() returned {type(study).__name__}; it must return a Study")
    for arm in study.arms:
        resolve(study, arm, study.seeds[0])
    return study


def resolve(study: Study, arm: str, seed: int, steps: int = 0) -> Any:
    """The config of one run: the base with the arm's fields, the seed and, unless 0, `steps` training steps.

    Raises:
        UserError: a field does not exist or refuses its value.
    """
    changes = dict(study.arms[arm])
    for name in changes:
        _check_field(study.base, name, arm)
    changes["seed"] = seed
    if isinstance(study.base, TrainConfig):
        changes["data.seed"] = seed
        if steps:
            changes["steps"] = steps
    return replace_fields(study.base, changes)


def run_name(config: Any, data: Mapping[str, Any]) -> str:
    """Name of a run, 16 hexadecimal digits: a hash of what it computes, so that studies share equal runs.

    Fields with default values are left out, so a run keeps its name when the code gains a new option.

    Args:
        config: `TrainConfig` or `Sampling` of the run.
        data: identity of the data, as JSON values.
    """
    described = json.dumps([_changed_fields(config), data], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _changed_fields(value: Any, prefix: str = "") -> Any:
    """A config as JSON values; of dataclasses the class and the fields that differ from their defaults."""
    if not dataclasses.is_dataclass(value):
        return to_dict(value)
    changed: dict[str, Any] = {"class": type(value).__name__}
    for field in dataclasses.fields(value):
        current = getattr(value, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if current != default and prefix + field.name not in PLACES:
            changed[field.name] = _changed_fields(current, f"{prefix}{field.name}.")
    return changed


def _check_field(config: Any, name: str, arm: str) -> None:
    """Raises `UserError` unless the dotted name leads through nested dataclasses to a field."""
    for part in name.split("."):
        fields = (
            [field.name for field in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
        )
        if part not in fields:
            close = difflib.get_close_matches(part, fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(fields) or 'none'}"
            raise UserError(f"arm {arm!r} replaces {name!r}: no field {part!r}; {hint}")
        config = getattr(config, part)
