"""`melody ablate configs/ablations/NAME.py`: does the runs of a study that are not done yet, then writes its report.

    melody ablate configs/ablations/chunks.py --folder features/audio --validation_folder features/validation

A run is one arm with one seed. Its folder, `<runs>/<name>`, is named by what it computes, so studies share runs that
are the same. Several processes may work at a study, or at several: a run is claimed by a lock that dies with its
process, and one that was interrupted goes on from its checkpoint. Run the same command again to go on; the report is
written when nothing is left to do. What it is made of is kept in `<out>/runs/<name>`: a run that is there is done.
"""

import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from melody_jax.ablation.files import DIVERGED, claim, is_done, keep, last_step, save_json
from melody_jax.ablation.study import Sampling, Study, load_study, resolve, run_name
from melody_jax.config import TrainConfig
from melody_jax.errors import Diverged, UserError
from melody_jax.runtime import ALLOCATOR, enable_compile_cache

POLL_SECONDS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Does a study and reports on it."""

    study: str = ""
    """The study's file; `melody ablate FILE` says it too."""
    folder: tuple[str, ...] = ()
    """Folders of feature shards to train on."""
    validation_folder: tuple[str, ...] = ()
    """Folders of feature shards whose records are the held-out clips."""
    networks: str = ""
    """Folder of the released networks the features were made with; empty: the packaged mini."""
    runs: str = "runs/ablations"
    """Folder of the runs, of all studies."""
    out: str = "docs/studies"
    """Folder of the report, <study>.md, .png, .json, and of what is kept of the runs."""
    arm: tuple[str, ...] = ()
    """Arms to run; empty: all. With a part of the study alone there is no report."""
    seed: tuple[int, ...] = ()
    """Seeds to run; empty: all."""
    workers: int = 0
    """Processes that share the runs, each with one thread; 0: this one, with as many as there are cores."""
    minutes: float = 0.0
    """Wall minutes after which runs are saved and left, to be gone on with later; 0: to the end."""
    steps: int = 0
    """Steps of every run instead of the study's, to try it out; 0: as the study says."""


class Run(NamedTuple):
    """One arm with one seed."""

    arm: str
    seed: int
    config: Any
    folder: Path
    """Where it is done."""
    kept: Path
    """Where what reports are made of is kept."""


def ablate(config: AblateConfig) -> Path | None:
    """Does what is left to do of the study; returns the report, or None while something is left.

    Raises:
        UserError: no such study, arm or seed; no data; a run that cannot be done; runs that are not paired.
    """
    if not config.study:
        raise UserError("say which study: melody ablate configs/ablations/NAME.py")
    study = load_study(config.study)
    runs, measures = list(runs_of(study, config)), measures_of(study)
    if config.workers:
        _share(config, [run for run in runs if not is_done(run.kept, measures)])
    else:
        work(config)
    left = [run for run in runs if not is_done(run.kept, measures)]
    if left:
        print(
            f"{len(left)} of {len(runs)} runs are not done; run the same command again to go on",
            file=sys.stderr,
        )
        return None
    if config.arm or config.seed:
        return None
    from melody_jax.ablation.study_report import report

    return report(study, config, runs)


def runs_of(study: Study, config: AblateConfig) -> Iterator[Run]:
    """The runs that the command asks for: seed by seed, so that early results compare all arms."""
    for kind, asked, known in (("arm", config.arm, study.arms), ("seed", config.seed, study.seeds)):
        for one in asked:
            if one not in known:
                raise UserError(f"unknown {kind} {one!r}; the study has {', '.join(map(str, known))}")
    module = _kind(study.base)
    for seed in config.seed or study.seeds:
        for arm in config.arm or study.arms:
            resolved = _with_data(resolve(study, arm, seed, config.steps), config)
            name = run_name(resolved, module.identity(resolved))
            yield Run(arm, seed, resolved, Path(config.runs) / name, Path(config.out) / "runs" / name)


def work(config: AblateConfig, quiet: bool = False) -> None:
    """Does the runs in this process, one after the other; those that others are at it leaves to them."""
    study = load_study(config.study)
    runs, measures = list(runs_of(study, config)), measures_of(study)
    module, began = _kind(study.base), time.monotonic()
    for run in runs:
        left = config.minutes - (time.monotonic() - began) / 60 if config.minutes else 0.0
        _refuse_changed_defaults(run.config, run.kept)
        if (config.minutes and left <= 0) or is_done(run.kept, measures):
            continue
        with claim(run.folder) as mine:
            if not mine or is_done(run.kept, measures):
                continue
            _refuse_changed_defaults(run.config, run.folder)
            if not is_done(run.folder, measures):
                print(
                    f"{Path(config.study).stem}: {run.arm}, seed {run.seed} ({run.folder})", file=sys.stderr
                )
                try:
                    if not module.carry_out(run.config, run.folder, measures, left, quiet):
                        return
                except Diverged as error:
                    print(f"{run.arm}, seed {run.seed}: {error}", file=sys.stderr)
                    save_json(run.folder / DIVERGED, {"steps": error.steps})
            keep(run.folder, run.kept)


def measures_of(study: Study) -> list[str]:
    """The measures that the study's metrics are from."""
    from melody_jax.ablation.measures import METRICS

    for name in study.metrics:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
    return sorted({METRICS[name].measure for name in study.metrics})


def _kind(base: Any) -> Any:
    """The module that does a study's runs."""
    from melody_jax.ablation import sampling, training

    return sampling if isinstance(base, Sampling) else training


def _with_data(resolved: Any, config: AblateConfig) -> Any:
    if isinstance(resolved, Sampling):
        return resolved
    if not config.folder or not config.validation_folder:
        raise UserError("this study trains: give --folder and --validation_folder, folders of feature shards")
    data = dataclasses.replace(
        resolved.data,
        folder=config.folder,
        validation_folder=config.validation_folder,
        networks=config.networks,
    )
    return dataclasses.replace(resolved, data=data)


def _refuse_changed_defaults(config: Any, folder: Path) -> None:
    """A run's name leaves defaults out: were one changed in the code, its folder would hold another run."""
    from melody_jax.config_json import difference, to_dict
    from melody_jax.training.checkpoint import FREE_FIELDS, FREE_PARTS, read_run

    if not isinstance(config, TrainConfig) or not (folder / "config.json").is_file():
        return
    for name, (then, now) in difference(read_run(folder)[0], to_dict(config)).items():
        free = name in FREE_FIELDS or name.startswith((*FREE_PARTS, "data.folder", "data.validation_folder"))
        if not free and "absent" not in (then, now):
            raise UserError(
                f"{folder} was made when {name} was {then}, it is {now} now; move it away, or choose another"
            )


def _share(config: AblateConfig, runs: Sequence[Run]) -> None:
    """`workers` processes do the `runs` that are left, each with one thread; SIGTERM and ^C let them save."""
    from tqdm import tqdm

    os.environ.setdefault("GLIBC_TUNABLES", ALLOCATOR)  # read when a process starts
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_worker, args=(config,)) for _ in range(config.workers)]

    def end(*_: FrameType | int | None) -> None:
        for process in processes:
            process.terminate()

    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    total = sum(_kind(run.config).steps(run.config) for run in runs)
    try:
        for process in processes:
            process.start()
        with tqdm(total=total, unit="step", desc=Path(config.study).stem) as bar:
            while any(process.is_alive() for process in processes):
                time.sleep(POLL_SECONDS)
                bar.n = sum(last_step(run.folder) for run in runs)
                bar.refresh()
    finally:
        end()
        for process in processes:
            process.join()
        for number, handler in previous.items():
            signal.signal(number, handler)
    if any((process.exitcode or 0) > 0 for process in processes):
        raise UserError("a worker gave up, see above; what is finished stays finished")


def _worker(config: AblateConfig) -> None:
    """One process of `_share`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and sends SIGTERM
    os.environ["PJRT_NPROC"] = (
        "1"  # XLA's threads: on small networks two processes of one beat one process of two
    )
    enable_compile_cache()
    try:
        work(config, quiet=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
