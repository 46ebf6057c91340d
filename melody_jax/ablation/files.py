"""Files of a study: written whole or not at all, and a claim on a run's folder that dies with its process."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Whether the run in `folder` is this process's alone inside; False if another one is at it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def save_json(path: Path, values: Any) -> None:
    """Writes indented JSON."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(values, indent=1) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """What `save_json` wrote."""
    return json.loads(path.read_text())


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes safetensors."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
    temporary.replace(path)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a last one that is cut is left out."""
    path, rows = folder / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def last_step(folder: Path) -> int:
    """The last step that metrics.jsonl tells of; only the end of the file is read."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            lines = file.read().decode().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["step"])
    return 0
