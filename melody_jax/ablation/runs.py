"""The runs of a study: the settings of `melody ablate`, and the arms and seeds that they select."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from melody_jax.ablation.study import Sampling, Study, SystemSampling, resolve, run_name
from melody_jax.errors import UserError
from melody_jax.options import check_fields, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Runs a study and reports on it."""

    study: str = option("", group="what to run")
    """Name of a study that comes with the project, or a Python file; `melody ablate STUDY` sets it too."""
    folder: tuple[str, ...] = option((), group="what to train on")
    """Folders of feature shards to train on."""
    validation_folder: tuple[str, ...] = ()
    """Folders of feature shards whose records are the held-out clips."""
    networks: str = ""
    """Folder of the released networks that made the features; empty: the packaged mini."""
    releases: str = ""
    """Folder of the releases that a study of systems samples; empty: the packaged ones."""
    runs: str = option("runs/ablations", group="where to write")
    """Folder of the run folders of all studies."""
    out: str = "studies"
    """Folder of the report, <study>.md, .png and .json, and of the results file, runs/<study>.json."""
    arm: tuple[str, ...] = option((), group="how to run")
    """Arms to run; empty: all. A part of a study gives no report."""
    seed: tuple[int, ...] = ()
    """Seeds to run; empty: all. A part of a study gives no report."""
    workers: int = option(0, least=0)
    """Processes that share the runs, each with one thread; 0: only this process, with a thread per core."""
    minutes: float = option(0.0, least=0)
    """Minutes after which runs are saved and left, to be resumed later; 0: no limit."""
    steps: int = option(0, least=0)
    """Training steps of every run instead of the study's, for a trial; 0: the study's."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        """Name of the study: its file's, without the suffix."""
        return Path(self.study).stem

    @property
    def results_file(self) -> Path:
        """The file that keeps the results of finished runs."""
        return Path(self.out) / "runs" / f"{self.name}.json"


class Run(NamedTuple):
    """One arm with one seed."""

    arm: str
    seed: int
    config: Any
    """`TrainConfig` or `Sampling`."""
    name: str
    """What the run computes, as a hash: `study.run_name`."""
    folder: Path
    """The run folder."""


def runs_of(study: Study, config: AblateConfig) -> Iterator[Run]:
    """The runs that the command selects, seed by seed, so that early results cover all arms."""
    for kind, selected, choices in (("arm", config.arm, study.arms), ("seed", config.seed, study.seeds)):
        for value in selected:
            if value not in choices:
                raise UserError(f"unknown {kind} {value!r}; the study has {', '.join(map(str, choices))}")
    runner = runner_of(study.base)
    for seed in config.seed or study.seeds:
        for arm in config.arm or study.arms:
            resolved = _with_data(resolve(study, arm, seed, config.steps), config)
            name = run_name(resolved, runner.identity(resolved))
            yield Run(arm, seed, resolved, name, Path(config.runs) / name)


def runner_of(base: Any) -> ModuleType:
    """The module that runs a study's runs: it has `identity` and `run_arm`."""
    from melody_jax.ablation import sampling, system_sampling, training

    if isinstance(base, SystemSampling):
        return system_sampling
    return sampling if isinstance(base, Sampling) else training


def row_count(base: Any) -> int:
    """Number of rows that a run writes to metrics.jsonl: one per step of a training, or one per batch of clips."""
    from melody_jax.ablation.clip_scores import BATCH, select_prompts

    if isinstance(base, Sampling):
        return math.ceil(len(select_prompts(base.prompts)) / BATCH)
    return base.steps


def _with_data(resolved: Any, config: AblateConfig) -> Any:
    """The config of a run with the folders that the command names. Raises `UserError` for those it does not use."""
    if isinstance(resolved, Sampling):
        _refuse(config, ("folder", "validation_folder", "networks", "steps"), "this study trains nothing")
        if not isinstance(resolved, SystemSampling):
            _refuse(config, ("releases",), "this study samples a packaged release, not systems")
        return dataclasses.replace(resolved, folder=config.releases) if config.releases else resolved
    _refuse(config, ("releases",), "this study trains and samples no release")
    if not config.folder or not config.validation_folder:
        raise UserError("this study trains: give folders of feature shards, --folder and --validation-folder")
    data = dataclasses.replace(
        resolved.data,
        folder=config.folder,
        validation_folder=config.validation_folder,
        networks=config.networks,
    )
    return dataclasses.replace(resolved, data=data)


def _refuse(config: AblateConfig, options: Sequence[str], reason: str) -> None:
    """Raises `UserError` if the command has one of these options."""
    given = [name for name in options if getattr(config, name)]
    if given:
        value = getattr(config, given[0])
        words = " ".join(value) if isinstance(value, tuple) else value
        raise UserError(f"--{given[0].replace('_', '-')} {words}: {reason}; leave the option out")


def measures_of(study: Study) -> list[str]:
    """The measures that the study's metrics come from."""
    from melody_jax.ablation.measures import METRICS

    return sorted({METRICS[name].measure for name in study.metrics})
