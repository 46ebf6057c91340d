"""`melody ablate STUDY`: runs the unfinished runs of a study, then writes its report.

    melody ablate chunks --folder features/audio --validation-folder features/validation

A run is one arm with one seed. Its folder, `<runs>/<name>`, is named by what the run computes, so studies
share equal runs. Several processes may work at one study, or at several: a run is claimed with a lock that
ends with its process, and an interrupted run resumes from its checkpoint. Run the same command again to
resume. The report is written when every run is finished. `<out>/runs/<study>.json` keeps what reports need: a
run in that file is never run again.
"""

import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from melody_jax import files
from melody_jax.ablation.files import DIVERGED, last_step
from melody_jax.ablation.results import (
    RunResult,
    add_results,
    find_results,
    published_config,
    read_folder,
    read_results,
)
from melody_jax.ablation.runs import AblateConfig, Run, measures_of, row_count, runner_of, runs_of
from melody_jax.ablation.study import load_study
from melody_jax.config import TrainConfig
from melody_jax.config_json import difference, to_dict
from melody_jax.errors import Diverged, UserError
from melody_jax.python_file import shipped_names
from melody_jax.runtime import ALLOCATOR, enable_compile_cache

POLL_SECONDS = 2.0
"""Seconds between two looks at the workers' progress."""


def ablate(config: AblateConfig) -> Path | None:
    """Runs what is unfinished; returns the report's Markdown file, or None if there is no report yet.

    Raises:
        UserError: no such study, arm or seed; no data; a run that fails; runs that are not paired.
    """
    if not config.study:
        names = ", ".join(shipped_names("study"))
        raise UserError(f"no study given; run melody ablate with one of {names}, or with a Python file")
    for folder in (config.out, config.runs):
        files.check_folder(folder)
    study = load_study(config.study)
    runs = list(runs_of(study, config))
    measures = measures_of(study)
    copy_shared_results(config, runs, measures)
    if config.workers:
        _run_workers(config, unfinished(config, runs, measures))
    else:
        work(config)
    left = unfinished(config, runs, measures)
    if left:
        print(
            f"{len(left)} of {len(runs)} runs are unfinished; run the same command again to resume",
            file=sys.stderr,
        )
        return None
    if config.arm or config.seed:
        print(f"All {len(runs)} requested runs are in {config.results_file}", file=sys.stderr)
        return None
    from melody_jax.ablation.study_report import write_report

    report = write_report(study, config, runs, read_results(config.results_file))
    print(f"Wrote {report}, {report.stem}.png and {report.stem}.json", file=sys.stderr)
    return report


def unfinished(config: AblateConfig, runs: Sequence[Run], measures: Sequence[str]) -> list[Run]:
    """The runs that the results file lacks, or whose measures it lacks."""
    results = read_results(config.results_file)
    return [run for run in runs if not _is_finished(run, results, measures)]


def _is_finished(run: Run, results: Mapping[str, RunResult], measures: Sequence[str]) -> bool:
    return run.name in results and results[run.name].is_complete(measures)


def copy_shared_results(config: AblateConfig, runs: Sequence[Run], measures: Sequence[str]) -> None:
    """Copies finished runs that are missing in the study's results file from those of other studies in its
    folder."""
    missing = {run.name: run.arm for run in unfinished(config, runs, measures)}
    results = find_results(config.results_file.parent, missing)
    shared = {
        name: dataclasses.replace(result, arm=missing[name])
        for name, result in results.items()
        if result.diverged_after is None and result.is_complete(measures)
    }
    if shared:
        add_results(config.results_file, shared)


def work(config: AblateConfig, quiet: bool = False) -> None:
    """Runs the unfinished runs in this process, one after the other, except those that other processes work
    on."""
    study = load_study(config.study)
    measures = measures_of(study)
    start = time.monotonic()
    runs = list(runs_of(study, config))
    for number, run in enumerate(runs, start=1):
        minutes_left = config.minutes - (time.monotonic() - start) / 60 if config.minutes else 0.0
        results = read_results(config.results_file)
        if run.name in results:
            _refuse_changed_defaults(run.config, results[run.name].config, str(config.results_file))
        if (config.minutes and minutes_left <= 0) or _is_finished(run, results, measures):
            continue
        with files.claim_folder(run.folder) as is_mine:
            if not is_mine or _is_finished(run, read_results(config.results_file), measures):
                continue
            if not _finish(run, f"run {number} of {len(runs)}", config, measures, minutes_left, quiet):
                return
            add_results(config.results_file, {run.name: read_folder(run.folder, run.arm, run.seed)})


def _finish(
    run: Run, position: str, config: AblateConfig, measures: Sequence[str], minutes: float, quiet: bool
) -> bool:
    """Runs and measures what the run folder lacks; False if the time limit or SIGTERM ended it early.

    position: which run of the study this is, for the line that names it.
    """
    result = read_folder(run.folder, run.arm, run.seed)
    _refuse_changed_defaults(run.config, result.config, str(run.folder))
    if result.is_complete(measures):
        return True
    print(f"{config.name}, {position}: {run.arm}, seed {run.seed} ({run.folder})", file=sys.stderr)
    try:
        return runner_of(run.config).run_arm(run.config, run.folder, measures, minutes, quiet)
    except Diverged as error:
        print(f"{run.arm}, seed {run.seed}: {error}", file=sys.stderr)
        files.write_json(run.folder / DIVERGED, {"steps": error.steps})
        return True


def _refuse_changed_defaults(config: Any, record: Any, source: str) -> None:
    """Raises `UserError` if a default changed: a run's name omits defaults, so another run could have the
    same name."""
    if record is None:
        return
    free_fields, free_parts = _free_fields(config)
    stored = published_config(record["config"])
    for name, (before, now) in difference(stored, published_config(to_dict(config))).items():
        is_free = name in free_fields or name.startswith(free_parts)
        if not is_free and "absent" not in (before, now):
            raise UserError(
                f"{source} has a run with {name} {before}, and the default is {now} now; move the file or folder away, "
                "or give another --runs and --out"
            )


def _free_fields(config: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fields, and beginnings of the names of fields, that do not change what a run computes."""
    if not isinstance(config, TrainConfig):
        return ("folder",), ()
    from melody_jax.training.run_folder import FREE_FIELDS, FREE_PARTS

    return FREE_FIELDS, (*FREE_PARTS, "data.folder", "data.validation_folder")


def _run_workers(config: AblateConfig, runs: Sequence[Run]) -> None:
    """Starts `workers` processes that finish the `runs`; SIGTERM and Ctrl-C let them save first."""
    os.environ.setdefault("GLIBC_TUNABLES", ALLOCATOR)  # glibc reads it when a process starts
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_worker, args=(config,)) for _ in range(config.workers)]

    def stop(*_: FrameType | int | None) -> None:
        for process in processes:
            process.terminate()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for process in processes:
            process.start()
        _show_progress(config, runs, processes)
    finally:
        stop()
        for process in processes:
            process.join()
        for number, handler in previous.items():
            signal.signal(number, handler)
    if any((process.exitcode or 0) > 0 for process in processes):
        raise UserError("a worker failed, see above; finished runs are saved")


def _show_progress(config: AblateConfig, runs: Sequence[Run], processes: Sequence[Any]) -> None:
    """One line with the steps of all runs and the number of measures taken, until the processes end."""
    from tqdm import tqdm

    steps = sum(row_count(run.config) for run in runs)
    with tqdm(total=steps, unit="step", desc=config.name, disable=None) as bar:
        while any(process.is_alive() for process in processes):
            time.sleep(POLL_SECONDS)
            bar.n = sum(last_step(run.folder) for run in runs)
            measures = sum(len(list(run.folder.glob("*.safetensors"))) for run in runs)
            bar.set_postfix_str(f"{measures} measures taken" if bar.n or measures else "compiling")


def _worker(config: AblateConfig) -> None:
    """One process of `_run_workers`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C and sends SIGTERM
    # XLA's threads: on small networks two processes with one thread beat one process with two
    os.environ["PJRT_NPROC"] = "1"
    enable_compile_cache()
    try:
        work(config, quiet=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
