"""Votes between two takes, blind: `melody evaluate --votes PROJECT/votes.jsonl` turns them into win rates."""

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

from melody_jax import files
from melody_jax.errors import UserError
from melody_jax.evaluation.vote_file import Vote, read_votes, vote_line
from melody_jax.studio.takes import Take

COMPARED = ("release", "system", "distilled", "model_hash")
"""Fields of a take beside its settings that a comparison may be about."""
MAX_BYTES = 64 << 20
"""Size of the largest file of votes."""


class VoteFile:
    """A file of votes that any thread may append to; its project is open in one process at a time.

    A line that a killed process left incomplete is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        if path.exists():
            try:
                with open(path, "r+b") as file:
                    files.remove_torn_line(file)
            except OSError as error:
                raise UserError(f"{path}: cannot be written ({error.strerror})") from error

    def append(self, vote: Vote) -> None:
        """Writes a vote; it is on the disk when this returns.

        Raises `UserError` if it cannot be written, and for a file that has become too large.
        """
        with self._lock:
            try:
                with open(self.path, "ab", buffering=0) as file:
                    if file.tell() > MAX_BYTES:
                        raise UserError(
                            f"{self.path}: more than {MAX_BYTES:,} bytes of votes; move the file away"
                        )
                    self._write(file.fileno(), vote_line(vote))
            except OSError as error:
                raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error

    def read(self) -> list[Vote]:
        """All votes in order. Raises `UserError` for a damaged line."""
        with self._lock:
            return read_votes(self.path) if self.path.exists() else []

    def _write(self, descriptor: int, line: bytes) -> None:
        """Appends a line, all of it or nothing."""
        end = os.lseek(descriptor, 0, os.SEEK_END)
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise


def vote_between(a: Take, b: Take, choice: str) -> Vote:
    """A vote between two takes, of which `a` came first: `choice` is "a", "b" or "tie".

    Raises `UserError` for another choice, and for the same take twice.
    """
    return Vote(a=a.id, b=b.id, differs=differing(a, b), choice=choice, time=round(time.time(), 3))


def differing(a: Take, b: Take) -> dict[str, tuple[Any, Any]]:
    """The settings and networks in which two takes differ, each with both values."""
    values = [take.settings | {name: getattr(take, name) for name in COMPARED} for take in (a, b)]
    names = [*values[0], *(name for name in values[1] if name not in values[0])]
    pairs = {name: (values[0].get(name), values[1].get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
