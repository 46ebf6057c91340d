"""Checkpoints: Orbax, written in the background, complete or absent.

`<workdir>/checkpoints/<step>/` holds three items: `state` (step, parameters, optimiser), `ema` (restorable alone) and
`data` (the iterator's position with its sha256, JSON: the library checks the sums of arrays only). In a bucket they are
written by the library on gs://, and uploaded otherwise (`remote_checkpoints.py`).
"""

import errno
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
import orbax.checkpoint as ocp

from melody_jax.config import TrainConfig
from melody_jax.errors import UserError, first_line
from melody_jax.models.functional import Params
from melody_jax.object_store import RemoteFolder, is_remote
from melody_jax.training import remote_checkpoints
from melody_jax.training.notes import ReportedOnce, shorten_library_messages
from melody_jax.training.run_folder import check_path
from melody_jax.training.state import TrainState

Train = TypeVar("Train", bound=Callable[..., Any])

ITEMS = ("state", "ema", "data")


class Checkpoints:
    """The checkpoints of one run folder, read-only unless `keep_last` sets how many to keep.

    A checkpoint has a temporary name, on gs:// no marker, until it is complete; the next writer removes unfinished ones
    of a killed process. `workdir` is the local folder of a run, `remote` the folder in a bucket that it stands for.
    """

    def __init__(
        self, workdir: Path, keep_last: int = 0, keep_every: int = 0, remote: RemoteFolder | None = None
    ) -> None:
        self._folder = remote_checkpoints.library_path(workdir, remote, "checkpoints")
        self._is_local = self._folder == workdir.absolute() / "checkpoints"
        self._remote = None if remote is None else remote / "checkpoints"
        self._uploads: remote_checkpoints.CheckpointUploads | None = None
        if self._remote is not None and self._is_local:
            remote_checkpoints.check_scheme(self._remote)
            self._uploads = remote_checkpoints.CheckpointUploads(
                self._remote, Path(self._folder), keep_last, keep_every
            )
        shorten_library_messages()
        check_path(workdir)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last or None,
            keep_period=keep_every or None,
            cleanup_tmp_directories=keep_last > 0,
            create=keep_last > 0,
        )
        try:
            self._manager = ocp.CheckpointManager(self._folder, item_names=ITEMS, options=options)
        except (OSError, ValueError) as error:
            raise UserError(f"{self._folder}: cannot be opened ({first_line(error)})") from error

    @property
    def latest(self) -> int | None:
        """The step of the last complete checkpoint, None in a fresh folder."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: dict[str, Any]) -> None:
        """Starts writing; returns once the arrays are copied, so that the caller may donate them.

        Raises:
            OSError: the disk has too little space, or was full while the previous checkpoint was written.
            UserError: the previous one could not be uploaded, or another training writes to the same bucket folder.
        """
        self._wait()
        if self._remote is not None:
            remote_checkpoints.check_sole_writer(self._remote, self.latest)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free if self._is_local else needed
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
                data=ocp.args.JsonSave({"position": data, "sha256": _digest(data)}),
            ),
        )
        if self._uploads is not None:
            self._uploads.start(int(state.step), self._manager.wait_until_finished)

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
        data = read["data"]
        if not isinstance(data, dict) or data.get("sha256") != _digest(data.get("position")):
            raise self._damaged(
                "item data does not have its sha256: damaged, or written by an earlier version"
            )
        return TrainState(ema=read["ema"], halted=halted, **read["state"]), data["position"]

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
            with ReportedOnce():
                read = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore raise many types for a truncated or missing file
            raise self._damaged(first_line(error)) from error
        missing = [name for name in items if read.get(name) is None]
        if missing:
            raise self._damaged(f"it lacks item {missing[0]!r}")
        return read

    def _damaged(self, reason: str) -> UserError:
        """The error about the latest checkpoint, which tells how to use the one before it."""
        step = self.latest
        earlier = [other for other in self._manager.all_steps() if other != step]
        advice = (
            f"to continue from step {max(earlier)}, move that folder elsewhere"
            if earlier
            else "there is no earlier checkpoint"
        )
        return UserError(f"checkpoint {self._folder / str(step)} cannot be read ({reason}); {advice}")

    def close(self) -> None:
        """Waits until everything is on disk, or in the bucket."""
        try:
            self._wait()
        finally:
            if self._uploads is not None:
                self._uploads.close()
            self._manager.close()

    def _wait(self) -> None:
        self._manager.wait_until_finished()
        if self._uploads is not None:
            self._uploads.wait()


def _digest(value: Any) -> str:
    """The sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def last_complete(path: str) -> str:
    """A phrase that names the checkpoint from which a run in a folder would resume."""
    if is_remote(path):
        return f"the last complete one is in {path}/checkpoints"
    workdir = Path(path)
    steps = [int(folder.name) for folder in (workdir / "checkpoints").glob("*") if folder.name.isdecimal()]
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
            place = (
                f"this machine, with copies of {config.workdir},"
                if is_remote(config.workdir)
                else config.workdir
            )
            raise UserError(
                f"the disk of {place} is full; {last_complete(config.workdir)}: free some space, then run the same "
                "command again"
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


def abstract_like(shapes: Any, shardings: Any) -> Any:
    """`ShapeDtypeStruct`s with shardings, to restore arrays to."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
