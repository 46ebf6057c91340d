"""What a study is: a base config, arms that replace a few of its fields, seeds, and what is measured.

A study file is Python with `study() -> Study`; it is run, so it is trusted. The base is a `TrainConfig`, whose steps
are the budget of every arm, or `Sampling`, for questions that a released model answers without training.
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
from melody_jax.options import replace_fields
from melody_jax.python_file import function_of

PLACES = (
    "workdir", "hosts", "watch", "data.folder", "data.validation_folder", "data.networks", "data.threads",
    "data.prefetch", "log_every", "eval_every", "eval_batches", "save_every", "save_minutes", "stop_minutes",
    "sigterm_seconds", "keep_last",
)  # fmt: skip
"""Fields of a `TrainConfig` that say where and how a run is done, not what comes out: no part of its name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a released model makes clips of the committed prompts (melody_jax/assets/prompts.jsonl)."""

    model: str = "mini"
    """Name of the packaged release."""
    steps: int = 5
    """Steps of the diffusion."""
    schedule: str = "paper"
    """Schedule of angles; see `diffusion.SCHEDULES`."""
    solver: str = "ddim"
    """See `diffusion.SOLVERS`."""
    guidance_scale: float = 2.5
    """Of the diffusion."""
    distilled: bool = False
    """The diffusion distilled for few steps: one pass a step instead of two."""
    prompts: int = 5
    """Prompts of each of the 16 groups, the first ones of the ten in the list."""
    seed: int = 0
    """Of the clips: item i has `seed` times the number of prompts plus i."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper found of an arm beside the base, to be held against what is found here."""

    arm: str
    """Name of the arm."""
    metric: str
    """Name of the metric."""
    says: Literal["better", "worse", "no different"]
    """How the arm does beside the base."""
    source: str
    """Where, with the figures: "Table 5: 0.13 against 0.12"."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """One question, asked of paired runs."""

    title: str
    """Heading of the report."""
    question: str
    """What it is to settle, in a sentence or two."""
    base: Any
    """`TrainConfig` or `Sampling`."""
    arms: Mapping[str, Mapping[str, Any]]
    """Name of an arm -> {dotted field: value}; the first arm is what the others are compared with."""
    metrics: tuple[str, ...]
    """Names of what is reported (`measures.METRICS`), the most important first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of initialisation, data order and noise together."""
    differs: tuple[str, ...] = ()
    """What arms draw differently on purpose ("angle", "has_condition"...); all else must be equal to the bit."""
    against: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Arm -> the arm that it is compared with, where that is not the first one."""
    claims: tuple[Claim, ...] = ()
    """What the paper says."""
    limits: str = ""
    """What the reader must know before he believes it."""

    def __post_init__(self) -> None:
        if not isinstance(self.base, TrainConfig | Sampling):
            raise UserError(f"base is {type(self.base).__name__}; it must be a TrainConfig or a Sampling")
        if len(self.arms) < 2 or not self.seeds or not self.metrics:
            raise UserError(f"study {self.title!r} needs two arms, a seed and a metric at least")
        named = {*self.against, *self.against.values()}
        if not named <= set(self.arms) or set(list(self.arms)[1:]) <= set(self.against):
            raise UserError(
                f"against {dict(self.against)}: of the study's arms, and one must be left for the first"
            )
        for claim in self.claims:
            if claim.arm not in self.arms or claim.metric not in self.metrics:
                raise UserError(
                    f"claim about {claim.arm!r}, {claim.metric!r}: no such arm, or no such metric"
                )

    @property
    def baseline(self) -> str:
        """The first arm."""
        return next(iter(self.arms))

    def rival(self, arm: str) -> str:
        """The arm that another one is compared with."""
        return self.against.get(arm, self.baseline)


def load_study(path: str | Path) -> Study:
    """The `Study` that the file's `study()` returns.

    Raises:
        UserError: the file is unknown or no study, or an arm replaces a field that the base does not have.
    """
    study = function_of(path, "study")()
    if not isinstance(study, Study):
        raise UserError(f"{path}: study() returned {type(study).__name__}; it must return a Study")
    for arm in study.arms:
        resolve(study, arm, study.seeds[0])
    return study


def resolve(study: Study, arm: str, seed: int, steps: int = 0) -> Any:
    """The config of one run: the base with the arm's fields, a seed, and `steps` of training if not 0.

    Raises:
        UserError: a field is unknown or refuses its value.
    """
    changes = dict(study.arms[arm])
    for name in changes:
        _check_field(study.base, name, arm)
    changes["seed"] = seed
    if isinstance(study.base, TrainConfig):
        changes |= {"data.seed": seed} | ({"steps": steps} if steps else {})
    return replace_fields(study.base, changes)


def run_name(config: Any, data: Mapping[str, Any]) -> str:
    """Names a run by what it computes from what, 16 hexadecimal digits: studies share runs that are the same.

    Fields at their defaults are left out, so that a run keeps its name when a new choice comes into the code.
    data: whatever identifies the data, as JSON values.
    """
    described = json.dumps([_stated(config), data], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _stated(value: Any, prefix: str = "") -> Any:
    """A config as JSON values: of dataclasses the class and the fields that are not at their defaults."""
    if not dataclasses.is_dataclass(value):
        return to_dict(value)
    found: dict[str, Any] = {"class": type(value).__name__}
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        usual = field.default_factory() if callable(field.default_factory) else field.default
        if own != usual and prefix + field.name not in PLACES:
            found[field.name] = _stated(own, f"{prefix}{field.name}.")
    return found


def _check_field(config: Any, name: str, arm: str) -> None:
    """Follows a dotted name through nested dataclasses."""
    for part in name.split("."):
        fields = (
            [field.name for field in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
        )
        if part not in fields:
            close = difflib.get_close_matches(part, fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(fields) or 'none'}"
            raise UserError(f"arm {arm!r} replaces {name!r}: no field {part!r}; {hint}")
        config = getattr(config, part)
