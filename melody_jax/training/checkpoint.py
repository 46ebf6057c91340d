"""Checkpoints: Orbax, written in the background, complete or absent.

`<workdir>/checkpoints/<step>/` holds three items: `state` (step, parameters, optimiser), `ema` (restorable alone) and
`data` (the iterator's position, JSON). `<workdir>/config.json` holds the resolved config and the hashes of the networks
that the data was made with.
"""

import errno
import functools
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from tqdm import tqdm

from melody_jax import files
from melody_jax.config import TrainConfig
from melody_jax.config_json import difference, to_dict
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.sharding import make_mesh
from melody_jax.training.state import TrainState

Train = TypeVar("Train", bound=Callable[..., Any])

ITEMS = ("state", "ema", "data")

FREE_FIELDS = (
    "steps", "log_every", "eval_every", "eval_batches", "save_every", "save_minutes", "stop_minutes",
    "sigterm_seconds", "keep_last", "keep_every", "on_nonfinite", "nonfinite_limit", "mesh", "workdir", "init_from",
    "data.threads", "data.prefetch", "data.networks",
)  # fmt: skip
"""Fields that may change when a run resumes: they set its length, intervals, folder and devices, not what it
computes."""
FREE_PARTS = ("hosts.", "watch.")
"""Parts of the config whose fields may all change when a run resumes."""


class Checkpoints:
    """The checkpoints of one run folder, read-only unless `keep_last` sets how many to keep.

    A checkpoint has a temporary name until it is complete; the next writer removes unfinished ones of a killed process.
    """

    def __init__(self, workdir: Path, keep_last: int = 0, keep_every: int = 0) -> None:
        self._folder = workdir.absolute() / "checkpoints"
        for name in ("absl", "asyncio"):  # failures in Orbax's threads are raised here too
            logging.getLogger(name).setLevel(logging.CRITICAL)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last or None,
            keep_period=keep_every or None,
            cleanup_tmp_directories=keep_last > 0,
            read_only=keep_last == 0,
        )
        self._manager = ocp.CheckpointManager(self._folder, item_names=ITEMS, options=options)

    @property
    def latest(self) -> int | None:
        """The step of the last complete checkpoint, None in a fresh folder."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: dict[str, Any]) -> None:
        """Starts writing; returns once the arrays are copied, so that the caller may donate them.

        Raises:
            OSError: the disk has too little space, or was full while the previous checkpoint was written.
        """
        self._manager.wait_until_finished()
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(
                errno.ENOSPC, f"a checkpoint takes {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free"
            )
        computation = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(computation),
                ema=ocp.args.StandardSave(state.ema),
                data=ocp.args.JsonSave(data),
            ),
        )

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The latest state, shaped and placed like `abstract` (`ShapeDtypeStruct`s with shardings), and `data`.

        Raises:
            UserError: the checkpoint is damaged or of another shape.
        """
        computation = {"step": abstract.step, "params": abstract.params, "opt_state": abstract.opt_state}
        read = self._restore(
            state=ocp.args.StandardRestore(computation),
            ema=ocp.args.StandardRestore(abstract.ema),
            data=ocp.args.JsonRestore(),
        )
        halted = jax.device_put(np.zeros((), bool), abstract.halted.sharding)
        return TrainState(ema=read["ema"], halted=halted, **read["state"]), read["data"]

    def restore_ema(self, abstract: Params) -> Params:
        """The latest weight average alone.

        Raises:
            UserError: there is no checkpoint, or it is damaged or of another shape.
        """
        return self._restore(ema=ocp.args.StandardRestore(abstract))["ema"]

    def restore_base(self, abstract: Params) -> Params:
        """The latest `params["base"]` alone, the network that adapters are added to.

        Raises:
            UserError: there is no checkpoint, or it is damaged or of another shape.
        """
        item = {"params": {"base": abstract}}
        restore_args = ocp.checkpoint_utils.construct_restore_args(item)
        state = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        read = self._restore(state=state)
        return read["state"]["params"]["base"]

    def _restore(self, **items: Any) -> Any:
        step = self.latest
        if step is None:
            raise UserError(f"no checkpoint in {self._folder}")
        try:
            read = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore raise many types for a truncated or missing file
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"checkpoint {self._folder / str(step)} cannot be read ({reason}); "
                "delete that folder to resume from the checkpoint before it"
            ) from error
        missing = [name for name in items if read.get(name) is None]
        if missing:
            raise UserError(
                f"checkpoint {self._folder / str(step)} lacks item {missing[0]!r}; "
                "delete that folder to resume from the checkpoint before it"
            )
        return read

    def close(self) -> None:
        """Waits until everything is on disk."""
        try:
            self._manager.wait_until_finished()
        finally:
            self._manager.close()


def last_complete(workdir: Path) -> str:
    """A phrase that names the checkpoint from which a run would resume."""
    steps = [int(folder.name) for folder in (workdir / "checkpoints").glob("*") if folder.name.isdigit()]
    return (
        f"{workdir / 'checkpoints' / str(max(steps))} is complete" if steps else "there is no checkpoint yet"
    )


def report_disk_full(train: Train) -> Train:
    """Decorates `train(config, ...)`: a full disk becomes a `UserError` that names the last complete checkpoint.

    Checkpoints are written in the background, so the error appears at the next save or at the end of the run.
    """

    @functools.wraps(train)
    def wrapped(config: TrainConfig, *args: Any, **kwargs: Any) -> Any:
        try:
            return train(config, *args, **kwargs)
        except Exception as error:
            if not _is_disk_full(error):
                raise
            workdir = Path(config.workdir)
            raise UserError(
                f"the disk of {workdir} is full; {last_complete(workdir)}: free some space, then run the same command "
                "again"
            ) from error

    return cast(Train, wrapped)


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether this error, or one that caused it, is a full disk; TensorStore reports it in its message only."""
    if error is None:
        return False
    codes = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and error.errno in codes:
        return True
    if any(os.strerror(code) in str(error) for code in codes):
        return True
    return _is_disk_full(error.__cause__ or error.__context__)


def write_run(workdir: Path, config: TrainConfig, hashes: dict[str, str]) -> None:
    """Writes `config.json`: {"config", "hashes": sha256 of the networks that the data was made with, "layout"}.

    With several processes, only the first one writes.
    """
    if jax.process_index() != 0:
        return
    files.make_folder(workdir)
    record = {"config": to_dict(config), "hashes": hashes, "layout": _layout(config)}
    files.write_json(workdir / "config.json", record, indent=2)


def read_run(workdir: Path) -> tuple[dict[str, Any], dict[str, str], dict[str, int]]:
    """The config (as from `to_dict`), hashes and layout of a run folder.

    Raises:
        UserError: the folder is not a run.
    """
    try:
        record = json.loads((workdir / "config.json").read_text())
        return record["config"], record["hashes"], record["layout"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{workdir} is not a run folder: it has no readable config.json") from None


def check_resume(workdir: Path, config: TrainConfig, hashes: dict[str, str]) -> None:
    """Refuses to resume with another config or other data than the run began with; prints a note if the layout differs.

    Raises:
        UserError: fields or networks differ; the message names them.
    """
    old_config, old_hashes, old_layout = read_run(workdir)
    changed = difference(old_config, to_dict(config))
    fields = [field for field in changed if field not in FREE_FIELDS and not field.startswith(FREE_PARTS)]
    if fields:
        raise UserError(
            f"{workdir} was trained with another config ({', '.join(fields)} differ); "
            "set them back, or choose another --workdir"
        )
    networks = difference(old_hashes, hashes)
    if networks:
        raise UserError(
            f"{workdir} was trained on features of another {', '.join(networks)}; choose another --workdir"
        )
    layout = _layout(config)
    if layout != old_layout and jax.process_index() == 0:
        print_note(
            f"{workdir} resumes with {_in_words(layout)} after {_in_words(old_layout)}: "
            "the state is the same, but later steps round differently"
        )


def print_note(line: str) -> None:
    """Prints one line on stderr, above a progress bar."""
    tqdm.write(line, file=sys.stderr)


def _layout(config: TrainConfig) -> dict[str, int]:
    """The layout, on which the order of a run's sums depends: processes, and devices on each axis of the mesh."""
    return {"processes": jax.process_count(), **make_mesh(config.mesh).shape}


def _in_words(layout: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in layout.items())


def abstract_like(shapes: Any, shardings: Any) -> Any:
    """`ShapeDtypeStruct`s with shardings, to restore arrays to."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


class StopSignal:
    """Decides when to save and when to stop: after a number of steps, by the clock, or on SIGTERM.

    Several processes must take the same decision at the same step. On SIGTERM to any of them, JAX's coordination
    service chooses the next step that all can still reach. They compare their clocks every `log_every` steps, where
    they wait for the device anyway, and stop or save if any process wants to.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._began = self._saved = time.monotonic()
        self._terminated = False
        self._timer: threading.Timer | None = None
        self._multiprocess = jax.process_count() > 1
        in_main_thread = threading.current_thread() is threading.main_thread()
        # with several processes, JAX catches SIGTERM from the time they join
        self._catches = in_main_thread and not self._multiprocess
        self._previous = signal.signal(signal.SIGTERM, self._terminate) if self._catches else None

    def _terminate(self, *_: Any) -> None:
        self._terminated = True

    @property
    def reason(self) -> str:
        """The reason for stopping before the last step, valid once `check` has returned stop."""
        return (
            "SIGTERM received" if self._terminated else f"stop_minutes {self._config.stop_minutes:g} reached"
        )

    def check(self, step: int) -> tuple[bool, bool]:
        """After `step` steps: whether to save, and whether to stop (after saving)."""
        config = self._config
        now = time.monotonic()
        stop = 0 < 60 * config.stop_minutes < now - self._began
        save = 0 < 60 * config.save_minutes < now - self._saved
        if self._multiprocess:
            votes = np.zeros((1, 2), bool)
            if step % config.log_every == 0:
                votes = np.asarray(multihost_utils.process_allgather(np.array([stop, save])))
            stop = bool(votes[:, 0].any())
            save = bool(votes[:, 1].any())
            self._terminated = multihost_utils.reached_preemption_sync_point(step)
        if self._terminated:
            self._timer = threading.Timer(config.sigterm_seconds, self._warn_late)
            self._timer.daemon = True
            self._timer.start()
        save |= config.save_every > 0 and step % config.save_every == 0
        if save:
            self._saved = now
        return save or stop or self._terminated, stop or self._terminated

    def _warn_late(self) -> None:
        print_note(
            f"SIGTERM came over {self._config.sigterm_seconds:g} s ago and the save is not done; if killed now, "
            f"{last_complete(Path(self._config.workdir))}: leave more time before SIGKILL, or use a faster disk"
        )

    def close(self) -> None:
        """Restores the previous handler of SIGTERM; call it once everything is saved."""
        if self._timer is not None:
            self._timer.cancel()
        if self._catches:
            signal.signal(signal.SIGTERM, self._previous)
