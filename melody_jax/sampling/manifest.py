"""Manifests: records of what a batch job has written, one JSON object per line and one file per process.

A line has all settings of the clip's request, its id and file with size and sha256, the words of its prompts that the
model does not know, the hash of the networks, the seconds that it took, and the time of creation.
"""

import contextlib
import fnmatch
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from melody_jax import files, object_store
from melody_jax.errors import UserError
from melody_jax.mirror import Mirror

FILES = "manifest*.jsonl"
"""The manifests of a job, one per process."""


class ClipManifest:
    """The clips that a job's processes have written into one folder, `mirror`: `entries` by id, and this process's
    file.

    A line is added after its clip's file is complete and on the disk. An incomplete last line, left by a killed
    process, is removed.
    """

    def __init__(self, file: IO[bytes], entries: dict[str, dict[str, Any]], mirror: Mirror) -> None:
        self._file = file
        self.entries = entries
        self.mirror = mirror

    def add(self, entry: dict[str, Any]) -> None:
        """Writes and syncs a line {"id", "file", "made_at", ...}, and removes a file that the clip had before.

        Raises `UserError` if it cannot be written.
        """
        try:
            self._file.write((json.dumps(entry, ensure_ascii=False) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(f"{self._file.name}: cannot be written ({error.strerror})") from error
        previous = self.entries.get(entry["id"], entry)
        self.entries[entry["id"]] = entry
        if previous["file"] != entry["file"]:
            self.mirror.remove(previous["file"])


@contextlib.contextmanager
def open_manifest(mirror: Mirror, process: int, processes: int) -> Iterator[ClipManifest]:
    """The manifest of the job in the folder of `mirror`, for process `process` of `processes`, its only writer.

    Raises:
        UserError: the folder cannot be written, a line in the middle is damaged, or another process has this
            manifest open, or one of a job with another number of processes.
    """
    folder = mirror.folder
    path = folder / file_name(process, processes)
    files.make_folder(folder)
    busy = "another process is writing it; give each its own --process and the same --processes"
    with _locked(path, "a+b", busy) as file:
        _refuse_other_jobs(folder, processes)
        files.remove_torn_line(file)
        yield ClipManifest(file, read_entries(folder), mirror)


def file_name(process: int, processes: int) -> str:
    """The name of a process's manifest, which says how many processes share the job."""
    return "manifest.jsonl" if processes == 1 else f"manifest-{process:03d}-of-{processes:03d}.jsonl"


def _refuse_other_jobs(folder: Path, processes: int) -> None:
    """Raises `UserError` if a process that divides the lines in another way has its manifest open.

    This process holds the lock of its own manifest, so that of two that start at once at least one sees the other.
    """
    same = {file_name(process, processes) for process in range(processes)}
    for path in folder.glob(FILES):
        if path.name in same:
            continue
        busy = f"in use by a process with another --processes than {processes}; it would make the same clips"
        with _locked(path, "r+b", busy):  # network file systems lock only what may be written
            pass


@contextlib.contextmanager
def _locked(path: Path, mode: str, busy: str) -> Iterator[IO[bytes]]:
    """A file that no other process holds. Raises `UserError` if it cannot be opened, or with `busy` if one does."""
    try:
        file = open(path, mode)  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    with file:
        if not files.lock(file):
            raise UserError(f"{path}: {busy}")
        yield file


def read_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """The latest line of each id in all manifests of a folder, which may be in a bucket.

    An unfinished last line is skipped: the process that writes it is still running.

    Raises `UserError` where a line in the middle is damaged.
    """
    if object_store.is_remote(folder):
        remote = object_store.RemoteFolder(folder)
        sizes = {name: size for name, size in remote.sizes().items() if fnmatch.fnmatch(name, FILES)}
        with tempfile.TemporaryDirectory() as copy:
            remote.download(sizes, Path(copy))
            return read_entries(Path(copy))
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(FILES)):
        for number, line in enumerate(files.read_bytes(path).split(b"\n")[:-1], start=1):
            try:
                entry = json.loads(line)
                _check_entry(entry)
                earlier = entries.get(entry["id"])
                if earlier is None or entry["made_at"] >= earlier["made_at"]:
                    entries[entry["id"]] = entry
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(
                    f"{path}, line {number}: damaged; delete the line, and its clip is made again"
                ) from None
    return entries


def _check_entry(entry: Any) -> None:
    """Raises `TypeError` or `KeyError` unless the value of a line has what is read of it."""
    types = {"id": str, "file": str, "made_at": int | float}
    if not all(isinstance(entry[name], kind) for name, kind in types.items()) or "/" in entry["file"]:
        raise TypeError
