"""The results file of a study, `<out>/runs/<study>.json`: what a report needs of every finished run.

The file is text with one line for each array and each run. An array holds its little-endian bytes in base64
and is named by a hash, so an array that several runs share is stored once. Runs have the names that
`study.run_name` gives them: they say what a run computes, so a study can copy a run that another study has
finished.
"""

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from melody_jax import files
from melody_jax.ablation.files import (
    is_cost,
    read_config,
    read_cost,
    read_divergence,
    read_measures,
    read_steps,
    short_path,
)
from melody_jax.errors import UserError, first_line

Arrays = Mapping[str, np.ndarray]
PATHS = (
    "workdir", "folder", "init_from", "data.folder", "data.validation_folder", "data.networks", "data.text_tokenizer",
    "stage.networks", "stage.mulan", "stage.tokenizer", "stage.weights", "stage.music_weights", "stage.text_weights",
    "stage.clap_weights",
)  # fmt: skip
"""Fields of a `TrainConfig` or a `Sampling` that hold paths."""
PRIVATE = ("hosts.coordinator",)
"""Fields that a results file leaves out."""
ENTRY_TYPES = {"arm": str, "seed": int, "config": dict, "cost": dict, "diverged_after": int}
"""Field of a run in a results file -> type of its value, if it is neither an array nor made of arrays."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """One finished run, without its checkpoints."""

    arm: str
    """Name of the arm in this study."""
    seed: int
    """Seed of the run."""
    config: Any = None
    """Content of the run's config.json; None for early runs that only sampled and have no such file."""
    cost: Any = None
    """Content of the run's cost.json; None if the run diverged."""
    diverged_after: int | None = None
    """Steps after which the loss or the gradient was not finite; None if the run did not diverge."""
    steps: Arrays
    """Columns of `files.read_steps`."""
    measures: Mapping[str, Arrays]
    """Measure -> array name -> array, clips first."""

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of all measures."""
        return {name: array for arrays in self.measures.values() for name, array in arrays.items()}

    def is_complete(self, measures: Iterable[str]) -> bool:
        """Whether the run is finished and has these measures, or diverged."""
        if self.diverged_after is not None:
            return True
        return self.cost is not None and all(measure in self.measures for measure in measures)


def read_folder(folder: Path, arm: str, seed: int) -> RunResult:
    """The result of the run in a run folder, with `published_config`. Raises `UserError` for a damaged file."""
    record = read_config(folder)
    return RunResult(
        arm=arm,
        seed=seed,
        config=None if record is None else record | {"config": published_config(record["config"])},
        cost=read_cost(folder),
        diverged_after=read_divergence(folder),
        steps=read_steps(folder),
        measures=read_measures(folder),
    )


def published_config(config: Any, prefix: str = "") -> Any:
    """A config as JSON values, with the last two parts of each path and without what names other machines."""
    if isinstance(config, dict):
        return {
            name: published_config(value, f"{prefix}{name}.")
            for name, value in config.items()
            if prefix + name not in PRIVATE
        }
    if prefix.removesuffix(".") not in PATHS:
        return config
    if isinstance(config, list):
        return [short_path(str(folder)) for folder in config]
    return short_path(config) if isinstance(config, str) else config


def read_results(file: Path) -> dict[str, RunResult]:
    """The results in a file, by run name; none if there is no such file. Raises `UserError` if it is
    damaged."""
    if not file.is_file():
        return {}
    content = files.read_json(file)
    try:
        sections = _typed(content, dict, "it")
        arrays = {
            name: _decode(_typed(entry, dict, f"array {name}"))
            for name, entry in _typed(sections.get("arrays"), dict, "arrays").items()
        }
        return {
            name: _from_json(_typed(entry, dict, f"run {name}"), arrays)
            for name, entry in _typed(sections.get("runs"), dict, "runs").items()
        }
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{file}: not a results file of a study ({first_line(error)})") from None


def find_results(folder: Path, names: Iterable[str]) -> dict[str, RunResult]:
    """The results of the named runs in all results files of the folder; files are read in the order of their
    names."""
    requested = set(names)
    results: dict[str, RunResult] = {}
    for file in sorted(folder.glob("*.json")):
        results |= {name: result for name, result in read_results(file).items() if name in requested}
    return results


def add_results(file: Path, results: Mapping[str, RunResult]) -> None:
    """Adds results to the file, atomically and under a lock, so several processes may add to it.

    A run that the file already has keeps the measures that its new result lacks.
    """
    with files.claim_folder(file.parent, wait=True):
        merged = read_results(file)
        for name, result in results.items():
            if name in merged:
                result = dataclasses.replace(
                    result, measures=dict(sorted({**merged[name].measures, **result.measures}.items()))
                )
            merged[name] = result
        files.write_bytes(file, _encode_file(merged).encode())


def _encode_file(results: Mapping[str, RunResult]) -> str:
    arrays: dict[str, Any] = {}
    runs = {name: _to_json(result, arrays) for name, result in results.items()}
    sections = []
    for title, entries in (("arrays", arrays), ("runs", runs)):
        lines = [f"{json.dumps(name)}: {json.dumps(entries[name])}" for name in sorted(entries)]
        sections.append(f'"{title}": {{\n' + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def _to_json(result: RunResult, arrays: dict[str, Any]) -> dict[str, Any]:
    """A run as JSON values; its arrays go into `arrays`."""
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    values["steps"] = _store(result.steps, arrays)
    values["measures"] = {measure: _store(inner, arrays) for measure, inner in result.measures.items()}
    return {name: value for name, value in values.items() if value is not None}


def _from_json(entry: dict[str, Any], arrays: Arrays) -> RunResult:
    """The run of an entry. Raises `ValueError`, `KeyError` or `TypeError` for values of other types than we write."""
    for name, kind in ENTRY_TYPES.items():
        if name in entry or name in ("arm", "seed"):
            _typed(entry.get(name), kind, name)
    if "cost" in entry and not is_cost(entry["cost"]):
        raise ValueError("cost is no object of numbers and texts")
    if "config" in entry:
        _typed(entry["config"].get("config"), dict, "config")
    steps = {name: arrays[key] for name, key in _typed(entry.get("steps"), dict, "steps").items()}
    if "step" not in steps or {array.shape for array in steps.values()} != {(len(steps["step"]),)}:
        raise ValueError("steps are no columns of one length")
    measures = {
        measure: {name: arrays[key] for name, key in _typed(names, dict, measure).items()}
        for measure, names in _typed(entry.get("measures"), dict, "measures").items()
    }
    return RunResult(**{**entry, "steps": steps, "measures": measures})


def _typed(value: Any, kind: type, name: str) -> Any:
    """The value. Raises `ValueError` unless it is of this type; True is no number."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} is {type(value).__name__}, not {kind.__name__}")
    return value


def _store(values: Arrays, arrays: dict[str, Any]) -> dict[str, str]:
    """Puts arrays into `arrays` and returns their keys by name."""
    keys = {}
    for name, array in values.items():
        entry = _encode(array)
        keys[name] = hashlib.sha256(json.dumps(entry).encode()).hexdigest()[:16]
        arrays[keys[name]] = entry
    return keys


def _encode(array: np.ndarray) -> dict[str, Any]:
    dtype = array.dtype.newbyteorder("<")
    data = np.ascontiguousarray(array, dtype).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": base64.b64encode(data).decode()}


def _decode(entry: dict[str, Any]) -> np.ndarray:
    """The array of an entry. Raises `ValueError` or `TypeError` unless it is one of numbers, with an axis or more."""
    dtype = np.dtype(_typed(entry["dtype"], str, "dtype"))
    shape = [_typed(size, int, "shape") for size in _typed(entry["shape"], list, "shape")]
    data = base64.b64decode(_typed(entry["base64"], str, "base64"), validate=True)
    if (
        dtype.kind not in "biuf"
        or not shape
        or min(shape) < 0
        or math.prod(shape) * dtype.itemsize != len(data)
    ):
        raise ValueError(f"an array of {dtype} {shape} in {len(data)} bytes")
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
