"""A run folder: which paths it may have, who trains in it, and what config.json says of the run.

`<workdir>/config.json` holds the resolved config and the hashes of the networks that the data was made with.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from melody_jax import files, object_store
from melody_jax.config import TrainConfig
from melody_jax.config_json import difference, to_dict, with_new_fields
from melody_jax.errors import UserError
from melody_jax.mirror import Mirror, mirrored
from melody_jax.sharding import make_mesh
from melody_jax.training.notes import print_note
from melody_jax.training.remote_checkpoints import complete_steps, download_latest

FREE_FIELDS = (
    "steps", "log_every", "eval_every", "eval_batches", "save_every", "save_minutes", "stop_minutes",
    "sigterm_seconds", "keep_last", "keep_every", "on_nonfinite", "nonfinite_limit", "mesh", "zero_stage", "workdir",
    "init_from", "data.threads", "data.prefetch", "data.networks", "stage.networks",
)  # fmt: skip
"""Fields that may change when a run resumes: they set its length, intervals, folder and devices, not what it
computes."""
FREE_PARTS = ("hosts.", "watch.")
"""Parts of the config whose fields may all change when a run resumes."""


RESTORED = ("config.json", "metrics.jsonl", "wandb_run.json")
"""Files that a run in a bucket needs to resume, besides its checkpoints."""
PATTERNS = "*?[\\"
"""Characters that the checkpoint library takes for a pattern, or for another character, in any part of a path."""
BUCKETS = ("gs:", "s3:")
"""Names of folders that the checkpoint library takes for the beginning of a URL."""
LOCK = "training.lock"


def check_path(workdir: Path) -> None:
    """Raises `UserError` unless the checkpoint library writes to exactly this folder, and can read it again."""
    path = str(workdir)
    if not object_store.is_remote(workdir):
        files.refuse_url(workdir)
        path = str(workdir.absolute())
    characters = sorted(set(PATTERNS) & set(path))
    if characters:
        raise UserError(
            f"workdir {path}: the checkpoint library takes {' '.join(characters)} for a pattern; choose a folder "
            f"without {' '.join(PATTERNS)} in its path"
        )
    folders = sorted(set(BUCKETS) & set(workdir.absolute().parts))
    if folders and not object_store.is_remote(workdir):
        raise UserError(
            f"workdir {path}: the checkpoint library takes {folders[0]} for a bucket; choose another name"
        )
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"workdir {path!r}: the name is not UTF-8; choose another folder") from None


@contextlib.contextmanager
def claim_workdir(workdir: Path) -> Iterator[None]:
    """While the context lasts, no other training may use the folder. Of several processes, the first one locks it.

    Raises:
        UserError: the path is not suitable, the folder cannot be made or written, or another training uses it.
    """
    check_path(workdir)
    files.make_folder(workdir)
    with contextlib.ExitStack() as closing:
        is_mine = True
        if jax.process_index() == 0:
            try:
                is_mine = closing.enter_context(files.claim_folder(workdir, LOCK))
            except UserError as error:
                if not os.access(workdir, os.W_OK):
                    raise
                print_note(f"{error}; make sure that no other training uses {workdir}")
        if jax.process_count() > 1:
            is_mine = bool(multihost_utils.broadcast_one_to_all(np.array(is_mine)))
        if not is_mine:
            raise UserError(
                f"{workdir}: another training is running in this folder; wait for its end, or choose another --workdir"
            )
        yield


@contextlib.contextmanager
def open_workdir(workdir: str) -> Iterator[Mirror]:
    """Claims the folder of a run while the context lasts, and yields it, or its local copy if it is in a bucket.

    Process 0 uploads metrics and config at each sweep of the copy, and at the end. Checkpoints are not part of it.

    Raises:
        UserError: as `claim_workdir`; the bucket cannot be used. Trainings on other machines are not noticed here.
    """
    if not object_store.is_remote(workdir):
        with claim_workdir(Path(workdir)):
            yield Mirror(Path(workdir))
        return
    check_path(Path(workdir))
    index = jax.process_index()
    with mirrored(
        workdir,
        fetches=lambda name: name in RESTORED,
        skips=lambda name: index > 0 or name.startswith("checkpoints/"),
        part=f"process {index}",
        seconds=0,
    ) as mirror:
        yield mirror


def local_run(path: str) -> Path:
    """A run folder as it is, or a copy of one in a bucket with its last complete checkpoint.

    Processes of one machine share the copy. Raises `UserError` if there is no run, or the store cannot be read.
    """
    if not object_store.is_remote(path):
        return Path(path)
    remote = object_store.RemoteFolder(path)
    home = object_store.cache_folder("runs", remote.url)
    folder = home / "files"
    with files.claim_folder(home, wait=True):
        latest = complete_steps(remote / "checkpoints")[-1:]
        copied = home / "copied.json"  # written last
        if not copied.is_file() or files.read_json(copied) != latest:
            copied.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            sizes = remote.sizes()
            if "config.json" not in sizes:
                raise UserError(f"{remote.url}: not a run folder, it has no config.json")
            remote.download({name: sizes[name] for name in RESTORED if name in sizes}, folder)
            download_latest(remote / "checkpoints", folder / "checkpoints")
            files.write_json(copied, latest)
    return folder


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
        UserError: the folder is not a run, or its config.json is damaged.
    """
    path = workdir / "config.json"
    files.refuse_url(workdir)
    if not path.is_file():
        raise UserError(f"{workdir} is not a run folder: it has no config.json")
    record = files.read_json(path)
    parts = (
        [record.get(name) for name in ("config", "hashes", "layout")] if isinstance(record, dict) else [None]
    )
    config = parts[0]
    if not all(isinstance(part, dict) for part in parts) or not isinstance(config, dict):
        raise UserError(f"{path}: not the description of a run")
    if not all(isinstance(config.get(name), dict) for name in ("stage", "data")):
        raise UserError(f"{path}: the config has no stage or no data")
    return config, record["hashes"], record["layout"]


def check_resume(workdir: Path, config: TrainConfig, hashes: dict[str, str]) -> None:
    """Refuses to resume with another config or other data than the run began with; prints a note if the layout differs.

    A run of an earlier version resumes if fields that are new since then have their defaults.

    Raises:
        UserError: fields or networks differ; the message names them.
    """
    old_config, old_hashes, old_layout = read_run(workdir)
    changed = difference(with_new_fields(old_config, config), to_dict(config))
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
    if layout.get("fsdp", 1) > 1:
        old_layout = {"ZeRO stage": 3} | old_layout
    if layout != old_layout and jax.process_index() == 0:
        print_note(
            f"{workdir} resumes with {_in_words(layout)} after {_in_words(old_layout)}: "
            "the state is the same, but later steps round differently"
        )


def _layout(config: TrainConfig) -> dict[str, int]:
    """The layout, on which the order of a run's sums depends: processes, devices on each axis of the mesh, what fsdp
    splits."""
    mesh = make_mesh(config.mesh).shape
    layout = {"processes": jax.process_count(), **mesh}
    return layout | ({"ZeRO stage": config.zero_stage} if mesh["fsdp"] > 1 else {})


def _in_words(layout: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in layout.items())
