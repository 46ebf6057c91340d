"""Files of a run folder: written atomically, and locked by the process that works on the run."""

import contextlib
import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from melody_jax import files
from melody_jax.config_json import to_dict
from melody_jax.errors import UserError
from melody_jax.tensor_file import parse_tensors
from melody_jax.training.digests import DIGEST
from melody_jax.training.metric_log import read_rows

CONFIG = "config.json"
"""File of a run's config: {"config": resolved config}, and more for a run that trains (`training/run_folder.py`)."""
COST = "cost.json"
"""File of a finished run: numbers and texts by name."""
DIVERGED = "diverged.json"
"""File of a run that diverged: {"steps": number of finished steps}."""


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes safetensors."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    files.write_bytes(path, safetensors.numpy.save(contiguous))


def read_measures(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The measures of a run, from its `<measure>.safetensors`: measure -> array name -> array, clips
    first. Raises `UserError` for a damaged file."""
    return {path.stem: read_arrays(path) for path in sorted(folder.glob("*.safetensors"))}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name. Raises `UserError` for a file that is unreadable or damaged."""
    arrays = parse_tensors(files.read_bytes(path), str(path))
    scalars = [name for name, array in arrays.items() if not array.ndim]
    if scalars:
        raise UserError(f"{path}: {scalars[0]} is one number; it must have one for each clip")
    return arrays


def write_config(folder: Path, config: Any) -> None:
    """Writes the resolved config of a run that only samples into its folder, as {"config": ...}."""
    files.write_json(folder / CONFIG, {"config": to_dict(config)}, indent=2)


def read_config(folder: Path) -> dict[str, Any] | None:
    """The content of a run's config.json, None if there is none. Raises `UserError` unless it holds a config."""
    record = _read_object(folder / CONFIG)
    if record is not None and not isinstance(record.get("config"), dict):
        raise UserError(f"{folder / CONFIG}: not the description of a run")
    return record


def read_cost(folder: Path) -> dict[str, Any] | None:
    """The content of a run's cost.json, None if there is none. Raises `UserError` unless it is numbers and texts."""
    cost = _read_object(folder / COST)
    if cost is not None and not is_cost(cost):
        raise UserError(f"{folder / COST}: not the cost of a run, numbers and texts by name")
    return cost


def is_cost(value: Any) -> bool:
    """Whether a value is an object of numbers and texts."""
    return isinstance(value, dict) and all(isinstance(entry, int | float | str) for entry in value.values())


def read_divergence(folder: Path) -> int | None:
    """The number of finished steps of a run that diverged, None if it did not. Raises `UserError` if it is damaged."""
    record = _read_object(folder / DIVERGED)
    if record is None:
        return None
    steps = record.get("steps")
    if type(steps) is not int or steps < 0:
        raise UserError(
            f'{folder / DIVERGED}: must be {{"steps": number of steps}}; delete it to train the run again'
        )
    return steps


def _read_object(path: Path) -> dict[str, Any] | None:
    """The object of a JSON file, None if there is no file. Raises `UserError` for any other content."""
    if not path.exists():
        return None
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


def read_steps(folder: Path) -> dict[str, np.ndarray]:
    """The rows of metrics.jsonl that have digests, as columns.

    Returns:
        "step" int32 (steps,), "loss" float32 (steps,), nan where a row has none, and every digest uint32
        (steps,).

    Raises:
        UserError: a row lacks a digest that others have, or a value is not a number of its column.
    """
    path = folder / "metrics.jsonl"
    rows = {row["step"]: row for row in read_rows(path) if any(name.startswith(DIGEST) for name in row)}
    names = sorted({name for row in rows.values() for name in row if name.startswith(DIGEST)})
    steps = sorted(rows)
    for step, name in itertools.product(steps, names):
        digest = rows[step].get(name)
        if not isinstance(digest, int | float) or not 0 <= digest < 1 << 32 or digest % 1:
            raise UserError(f"{path}, step {step}: {name} is {digest!r}; it must be a digest of 32 bits")
    losses = [rows[step].get("loss") for step in steps]
    loss = [math.nan if value is None else value for value in losses]
    if not all(isinstance(value, int | float) for value in loss) or not all(
        0 <= step < 1 << 31 for step in steps
    ):
        raise UserError(f"{path}: a step or a loss is not a number of its column")
    columns = {"step": np.array(steps, np.int32), "loss": np.array(loss, np.float32)}
    digests = {name: np.array([int(rows[step][name]) for step in steps], np.uint32) for name in names}
    return columns | digests


def last_step(folder: Path) -> int:
    """The last step in metrics.jsonl, 0 if there is none. Reads only the end of the file."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            lines = files.split_lines(file.read().decode("utf-8", "replace"))
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["step"])
    return 0


def short_path(folder: str | Path) -> str:
    """The last two parts of a path: published files do not reveal where this machine keeps its folders."""
    return "/".join(Path(folder).parts[-2:])
