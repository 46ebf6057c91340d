"""Files of a study: written whole or not at all, and a claim on a run's folder that dies with its process."""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from melody_jax.data.records import write_bytes
from melody_jax.training.digests import DIGEST

STEPS = "steps.safetensors"
"""What `keep` leaves of metrics.jsonl."""
DIVERGED = "diverged.json"
"""In the folder of a run that met numbers that were not finite: {"steps": how many it had done}."""


@contextlib.contextmanager
def claim(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Whether the run in `folder` is this process's alone inside; False if another one is at it and we do not wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def save_json(path: Path, values: Any) -> None:
    """Writes indented JSON."""
    write_bytes(path, (json.dumps(values, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """What `save_json` wrote."""
    return json.loads(path.read_text())


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes safetensors."""
    write_bytes(
        path, safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    )


def is_done(folder: Path, measures: Iterable[str]) -> bool:
    """Whether a run is finished and all of these measures are taken, or it diverged."""
    wanted = ("cost.json", *(f"{measure}.safetensors" for measure in measures))
    return (folder / DIVERGED).is_file() or all((folder / name).is_file() for name in wanted)


def results(folder: Path) -> dict[str, np.ndarray]:
    """All that was measured of a run."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name != STEPS:
            found |= safetensors.numpy.load_file(path)
    return found


def keep(folder: Path, kept: Path) -> None:
    """Copies of a finished run what reports are made of, about 100 kB: no checkpoints, of the curves the loss alone.

    Kept runs are published: of the folders in config.json the last two parts are copied.
    """
    kept.mkdir(parents=True, exist_ok=True)
    save_arrays(kept / STEPS, read_steps(folder))
    if (folder / "config.json").is_file():
        record = read_json(folder / "config.json")
        config, data = record["config"], record["config"]["data"]
        config["workdir"], data["networks"] = short(config["workdir"]), short(data["networks"])
        for name in ("folder", "validation_folder"):
            data[name] = [short(one) for one in data[name]]
        save_json(kept / "config.json", record)
    last = folder / "cost.json"  # with it the run counts as done
    for path in (*folder.glob("*.safetensors"), folder / DIVERGED, last):
        if path.is_file():
            write_bytes(kept / path.name, path.read_bytes())


def short(folder: str | Path) -> str:
    """The last two parts of a path: the rest is elsewhere elsewhere."""
    return "/".join(Path(folder).parts[-2:])


def read_steps(folder: Path) -> dict[str, np.ndarray]:
    """The `step`s that have digests, (steps,), and of each all digests and the `loss`: as kept, or of metrics.jsonl."""
    if (folder / STEPS).is_file():
        return safetensors.numpy.load_file(folder / STEPS)
    rows = {row["step"]: row for row in read_rows(folder) if any(name.startswith(DIGEST) for name in row)}
    names = sorted({name for row in rows.values() for name in row if name.startswith(DIGEST)})
    steps = sorted(rows)
    loss = [math.nan if rows[step].get("loss") is None else rows[step]["loss"] for step in steps]
    found = {"step": np.array(steps, np.int32), "loss": np.array(loss, np.float32)}
    return found | {name: np.array([rows[step][name] for step in steps]).astype(np.uint32) for name in names}


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
