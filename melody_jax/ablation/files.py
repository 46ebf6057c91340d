"""Files of a run folder: written atomically, and locked by the process that works on the run."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from melody_jax import files
from melody_jax.training.digests import DIGEST
from melody_jax.training.metric_log import read_rows

DIVERGED = "diverged.json"
"""File of a run that diverged: {"steps": number of finished steps}."""


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes safetensors."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    files.write_bytes(path, safetensors.numpy.save(contiguous))


def read_measures(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The measures of a run, from its `<measure>.safetensors`: measure -> array name -> array, clips
    first."""
    return {path.stem: safetensors.numpy.load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def read_steps(folder: Path) -> dict[str, np.ndarray]:
    """The rows of metrics.jsonl that have digests, as columns.

    Returns:
        "step" int32 (steps,), "loss" float32 (steps,), nan where a row has none, and every digest uint32
        (steps,).
    """
    rows = {
        row["step"]: row
        for row in read_rows(folder / "metrics.jsonl")
        if any(name.startswith(DIGEST) for name in row)
    }
    names = sorted({name for row in rows.values() for name in row if name.startswith(DIGEST)})
    steps = sorted(rows)
    loss = [math.nan if rows[step].get("loss") is None else rows[step]["loss"] for step in steps]
    columns = {"step": np.array(steps, np.int32), "loss": np.array(loss, np.float32)}
    digests = {name: np.array([rows[step][name] for step in steps]).astype(np.uint32) for name in names}
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
