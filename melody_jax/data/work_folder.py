"""The folder `.work` of an unfinished `melody prepare`: its plan, what each unit has done, and how far it has come.

A unit is the work of one shard. Workers share this folder with the process that started them, so it must be visible to
all of them under one path.

    plan-00000.json                    recordings of unit 0
    candidate-00000-00.array_record    pieces of its first part, before duplicates are removed
    inspected-00000-00.safetensors     fingerprints and rejects of its first part
    done-00000.json                    the shard of unit 0 is written: its hash, rejects and counts
    progress-00000                     one byte per finished item
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from melody_jax import files
from melody_jax.data import records
from melody_jax.data.layouts import Recording
from melody_jax.data.prepare_config import PrepareConfig

WORK = ".work"
PART = 8
"""Recordings per part, the smallest piece of work that a worker takes: several cores share the work of one shard."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker must know: small, picklable, the same for every unit.

    `source` and `out` are absolute folders; `sizes` is the number of items (recordings or pieces) of each unit.
    """

    config: PrepareConfig
    source: str
    out: str
    sizes: tuple[int, ...]

    @property
    def units(self) -> int:
        """The number of units, hence of shards."""
        return len(self.sizes)

    def parts(self, unit: int) -> int:
        """The number of parts of a unit of recordings."""
        return -(-self.sizes[unit] // PART)

    def plan_path(self, unit: int) -> Path:
        """The JSON list of a unit's recordings."""
        return self._path(f"plan-{unit:05d}.json")

    def candidate_path(self, unit: int, part: int) -> Path:
        """The shard of a part's pieces before duplicates are removed."""
        return self._path(f"candidate-{unit:05d}-{part:02d}.array_record")

    def report_path(self, unit: int, part: int) -> Path:
        """The fingerprints and rejects of a part."""
        return self._path(f"inspected-{unit:05d}-{part:02d}.safetensors")

    def done_path(self, unit: int) -> Path:
        """The JSON file that exists once a unit's shard is written."""
        return self._path(f"done-{unit:05d}.json")

    def write_plan(self, unit: int, recordings: list[Recording]) -> None:
        """Writes the recordings of a unit."""
        files.write_json(self.plan_path(unit), [dataclasses.asdict(recording) for recording in recordings])

    def read_plan(self, unit: int) -> list[Recording]:
        """Reads the recordings of a unit."""
        rows = files.read_json(self.plan_path(unit))
        for row in rows:
            row["clip"] = tuple(row["clip"]) if row["clip"] else None
        return [Recording(**row) for row in rows]

    def shard_path(self, kind: str, unit: int) -> Path:
        """The finished shard of a unit; `kind` is "audio" or "features"."""
        return Path(self.out) / records.shard_name(kind, unit, self.units)

    def write_done(
        self,
        unit: int,
        shard: records.Shard,
        rejects: list[dict[str, Any]],
        counts: dict[str, Any],
        notes: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Records that a unit is finished: its shard, rejects, counts of items and seconds, notes on what is used."""
        result = {
            "shard": dataclasses.asdict(shard),
            "rejects": rejects,
            "counts": counts,
            "notes": list(notes),
        }
        files.write_json(self.done_path(unit), result)

    @contextlib.contextmanager
    def progress(self, unit: int, part: int = 0) -> Iterator[Callable[[int], object]]:
        """Yields a function that adds a number of finished items to the count that `finished_items` reads."""
        path = self._path(f"progress-{unit:05d}-{part:02d}")
        with path.open("wb", buffering=0) as file:
            yield lambda count: file.write(b"." * count)

    def finished_items(self) -> int:
        """The number of items that all workers have finished."""
        return sum(path.stat().st_size for path in self._path("").glob("progress-*"))

    def _path(self, name: str) -> Path:
        return Path(self.out) / WORK / name
