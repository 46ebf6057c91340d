"""Checkpoints: Orbax, written in the background, complete or absent.

`<workdir>/checkpoints/<step>/` holds three items: `state` (step, parameters, optimiser), `ema` (restorable alone)
and `data` (the iterator's position, JSON). `<workdir>/config.json` holds the resolved config and the hashes of the
networks the data was made with.
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

from melody_jax.config import TrainConfig
from melody_jax.config_json import difference, to_dict
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.sharding import make_mesh
from melody_jax.training.state import TrainState

Train = TypeVar("Train", bound=Callable[..., Any])

ITEMS = ("state", "ema", "data")

# What may change between the slices of one run: how long, how often, where, on what; not what is computed.
FREE_FIELDS = (
    "steps", "log_every", "eval_every", "eval_batches", "save_every", "save_minutes", "stop_minutes",
    "sigterm_seconds", "keep_last", "keep_every", "on_nonfinite", "nonfinite_limit", "mesh", "workdir", "init_from",
    "data.threads", "data.prefetch", "data.networks",
)  # fmt: skip
FREE_PARTS = ("hosts.", "watch.")


class Checkpoints:
    """The checkpoints of one run folder, opened for reading alone unless `keep_last` says how many to keep.

    One being written has a temporary name until it is whole; what a killed process left is removed by the next writer.
    """

    def __init__(self, workdir: Path, keep_last: int = 0, keep_every: int = 0) -> None:
        self._folder = workdir.absolute() / "checkpoints"
        for name in ("absl", "asyncio"):  # what fails in Orbax's threads is raised here as well
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
        """The last complete checkpoint's step, None in a fresh folder."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: dict[str, Any]) -> None:
        """Starts writing; returns once the arrays are copied, so the caller may donate them.

        Raises:
            OSError: there is no room (as far as the disk tells: it may still fill, which the next call raises).
        """
        self._manager.wait_until_finished()
        needed, free = (
            sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
            shutil.disk_usage(self._folder).free,
        )
        if free < needed:
            raise OSError(
                errno.ENOSPC, f"a checkpoint takes {needed / 1e9:.3g} GB, there are {free / 1e9:.3g}"
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
        """The latest `params["base"]` alone: what adapters are added to.

        Raises:
            UserError: there is no checkpoint, or it is damaged or of another shape.
        """
        item = {"params": {"base": abstract}}
        places = ocp.checkpoint_utils.construct_restore_args(item)
        read = self._restore(state=ocp.args.PyTreeRestore(item, restore_args=places, partial_restore=True))
        return read["state"]["params"]["base"]

    def _restore(self, **items: Any) -> Any:
        step = self.latest
        if step is None:
            raise UserError(f"no checkpoint in {self._folder}")
        try:
            read = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore raise many kinds for a file that is cut or missing
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"checkpoint {self._folder / str(step)} cannot be read ({reason}); "
                "delete that folder to go on from the one before it"
            ) from error
        missing = [name for name in items if read.get(name) is None]
        if missing:
            raise UserError(
                f"checkpoint {self._folder / str(step)} lacks its item {missing[0]!r}; delete that folder"
            )
        return read

    def close(self) -> None:
        """Waits until everything is on disk."""
        try:
            self._manager.wait_until_finished()
        finally:
            self._manager.close()


def last_complete(workdir: Path) -> str:
    """Which checkpoint a run would go on from, in words."""
    steps = [int(folder.name) for folder in (workdir / "checkpoints").glob("*") if folder.name.isdigit()]
    return (
        f"{workdir / 'checkpoints' / str(max(steps))} is complete" if steps else "there is no checkpoint yet"
    )


def explains_full_disk(train: Train) -> Train:
    """Decorates `train(config, ...)`: a full disk becomes a `UserError` that says which checkpoint is still good.

    Checkpoints are written in the background: it shows at the next save, or at the end of the run.
    """

    @functools.wraps(train)
    def wrapped(config: TrainConfig, *args: Any, **kwargs: Any) -> Any:
        try:
            return train(config, *args, **kwargs)
        except Exception as error:
            if not _no_room(error):
                raise
            workdir = Path(config.workdir)
            raise UserError(
                f"the disk of {workdir} is full; {last_complete(workdir)}: make room, then run the same command again"
            ) from error

    return cast(Train, wrapped)


def _no_room(error: BaseException | None) -> bool:
    """Whether this error, or one it came from, is a full disk; TensorStore says so in its message alone."""
    if error is None:
        return False
    codes = (errno.ENOSPC, errno.EDQUOT)
    said = isinstance(error, OSError) and error.errno in codes
    return (
        said
        or any(os.strerror(code) in str(error) for code in codes)
        or _no_room(error.__cause__ or error.__context__)
    )


def write_run(workdir: Path, config: TrainConfig, hashes: dict[str, str]) -> None:
    """Writes `config.json`: {"config": resolved, "hashes": network -> sha256 of what the data was made with, "layout"}.

    Of several processes the first one writes.
    """
    if jax.process_index() != 0:
        return
    workdir.mkdir(parents=True, exist_ok=True)
    record = {"config": to_dict(config), "hashes": hashes, "layout": _layout(config)}
    temporary = workdir / f".config.{os.getpid()}.json"
    try:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
        temporary.replace(workdir / "config.json")
    finally:
        temporary.unlink(missing_ok=True)


def read_run(workdir: Path) -> tuple[dict[str, Any], dict[str, str], dict[str, int]]:
    """The config (as `to_dict` gives it), hashes and layout of a run folder.

    Raises:
        UserError: the folder is not a run.
    """
    try:
        record = json.loads((workdir / "config.json").read_text())
        return record["config"], record["hashes"], record["layout"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{workdir} is not a run folder: it has no readable config.json") from None


def check_resume(workdir: Path, config: TrainConfig, hashes: dict[str, str]) -> None:
    """Refuses to go on with another config or on other data than the run began with; tells of another layout.

    Raises:
        UserError: names the fields, or the networks, that differ.
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
        before, now = (
            ", ".join(f"{name} {size}" for name, size in sizes.items()) for sizes in (old_layout, layout)
        )
        say(
            f"{workdir} goes on with {now} after {before}: from equal numbers, but rounded otherwise, not to equal bits"
        )


def say(line: str) -> None:
    """One line for the user that is no error, beside the progress bar."""
    tqdm.write(line, file=sys.stderr)


def _layout(config: TrainConfig) -> dict[str, int]:
    """What the order of a run's sums depends on: processes, and devices on each axis of the mesh."""
    return {"processes": jax.process_count(), **make_mesh(config.mesh).shape}


def abstract_like(shapes: Any, shardings: Any) -> Any:
    """`ShapeDtypeStruct`s that say where to restore to."""
    return jax.tree.map(lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, shardings)


class Alarm:
    """Says when to save and when to stop: by steps, by the clock, or because of SIGTERM.

    Several processes must do the same at the same step. On SIGTERM to any of them JAX's coordination service picks the
    step, the next that all can still reach. Their clocks they compare every `log_every` steps, where they wait for the
    device anyway, and stop or save if any one wants to.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config, self._terminated, self._late = config, False, None
        self._began = self._saved = time.monotonic()
        self._several = jax.process_count() > 1
        main = threading.current_thread() is threading.main_thread()
        self._catches = main and not self._several  # among several, JAX has caught it since they joined
        self._previous = signal.signal(signal.SIGTERM, self._terminate) if self._catches else None

    def _terminate(self, *_: Any) -> None:
        self._terminated = True

    def due(self, step: int) -> tuple[bool, bool]:
        """Before the step after `step`: whether to save, and whether to end (having saved)."""
        config, now = self._config, time.monotonic()
        stop = 0 < 60 * config.stop_minutes < now - self._began
        save = 0 < 60 * config.save_minutes < now - self._saved
        if self._several:
            said = np.zeros((1, 2), bool)
            if step % config.log_every == 0:
                said = np.asarray(multihost_utils.process_allgather(np.array([stop, save])))
            stop, save = bool(said[:, 0].any()), bool(said[:, 1].any())
            self._terminated = multihost_utils.reached_preemption_sync_point(step)
        if self._terminated:
            self._late = threading.Timer(config.sigterm_seconds, self._tell)
            self._late.daemon = True
            self._late.start()
        save |= config.save_every > 0 and step % config.save_every == 0
        if save:
            self._saved = now
        return save or stop or self._terminated, stop or self._terminated

    def _tell(self) -> None:
        say(
            f"SIGTERM came over {self._config.sigterm_seconds:g} s ago and the save is not done; if killed now, "
            f"{last_complete(Path(self._config.workdir))}: leave more time before SIGKILL, or use a faster disk"
        )

    def close(self) -> None:
        """Everything is saved: gives SIGTERM back to whoever had it."""
        if self._late is not None:
            self._late.cancel()
        if self._catches:
            signal.signal(signal.SIGTERM, self._previous)
