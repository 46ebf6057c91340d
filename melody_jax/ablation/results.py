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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from melody_jax import files
from melody_jax.ablation.files import DIVERGED, read_measures, read_steps, short_path
from melody_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """One finished run, without its checkpoints."""

    arm: str
    """Name of the arm in this study."""
    seed: int
    """Seed of the run."""
    config: Any = None
    """Content of the run's config.json; None for a run that only samples."""
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
    """The result of the run in a run folder. Of the paths in its config the last two parts remain."""
    diverged = folder / DIVERGED
    cost = folder / "cost.json"
    return RunResult(
        arm=arm,
        seed=seed,
        config=_published_config(folder / "config.json"),
        cost=files.read_json(cost) if cost.is_file() else None,
        diverged_after=files.read_json(diverged)["steps"] if diverged.is_file() else None,
        steps=read_steps(folder),
        measures=read_measures(folder),
    )


def _published_config(file: Path) -> Any:
    if not file.is_file():
        return None
    record = files.read_json(file)
    config = record["config"]
    data = config["data"]
    config["workdir"] = short_path(config["workdir"])
    data["networks"] = short_path(data["networks"])
    for name in ("folder", "validation_folder"):
        data[name] = [short_path(folder) for folder in data[name]]
    return record


def read_results(file: Path) -> dict[str, RunResult]:
    """The results in a file, by run name; none if there is no such file. Raises `UserError` if it is
    damaged."""
    if not file.is_file():
        return {}
    try:
        content = files.read_json(file)
        arrays = {name: _decode(entry) for name, entry in content["arrays"].items()}
        return {name: _from_json(entry, arrays) for name, entry in content["runs"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a results file of a study ({error})") from None


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
    steps = {name: arrays[key] for name, key in entry["steps"].items()}
    measures = {
        measure: {name: arrays[key] for name, key in names.items()}
        for measure, names in entry["measures"].items()
    }
    return RunResult(**{**entry, "steps": steps, "measures": measures})


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
    dtype = np.dtype(entry["dtype"])
    data = np.frombuffer(base64.b64decode(entry["base64"]), dtype.newbyteorder("<"))
    return data.astype(dtype).reshape(entry["shape"])
