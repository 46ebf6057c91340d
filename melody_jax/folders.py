"""Folders of a user: one walk for all commands, and names as tables and disks spell them."""

import os
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from melody_jax import files
from melody_jax.errors import UserError


def printable(name: str | os.PathLike) -> str:
    r"""A file's name as text that any output takes: bytes that are not UTF-8 become escapes, as \xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def size_of(path: str | os.PathLike) -> int:
    """Bytes of a regular file; -1 if there is none that can be looked up."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def check_present(path: str | os.PathLike, content: str) -> None:
    """Raises `UserError` unless there is such a folder. `content` says what it should hold, as in "shards"."""
    files.refuse_url(path)
    if not is_folder(path):
        raise UserError(f"{path}: no such folder of {content}")


def is_folder(path: str | os.PathLike) -> bool:
    """Whether there is a folder that can be looked up."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def walk(folder: str | os.PathLike, skipped: dict[str, str] | None = None) -> list[str]:
    """Paths of all files below a folder, relative to it, with slashes, sorted.

    Symbolic links to folders are followed; a folder that several paths lead to appears once, under its real name if
    that lies below `folder`. Hidden folders are left out, hidden files are not.

    Args:
        folder: the folder.
        skipped: receives path -> reason of what cannot be read: folders without permission, broken links, devices.

    Raises:
        UserError: the folder cannot be read.
    """
    names: list[str] = []
    visited: set[tuple[int, int]] = set()
    folders = [""]
    links: list[str] = []
    problems = {} if skipped is None else skipped
    while folders or links:
        relative = folders.pop() if folders else links.pop(0)
        path = os.path.join(folder, relative)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if not relative:
                raise UserError(f"{folder}: the folder cannot be read ({reason})") from error
            problems[relative] = reason
            continue
        for entry in listed:
            name = f"{relative}/{entry.name}" if relative else entry.name
            kind = _kind(entry)
            if kind == "file":
                names.append(name)
            elif kind != "folder":
                problems[name] = kind
            elif not entry.name.startswith("."):
                (links if entry.is_symlink() else folders).append(name)
    return sorted(names)


def _kind(entry: os.DirEntry[str]) -> str:
    """Returns "folder", "file", or why the entry is neither."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return "a broken symbolic link" if entry.is_symlink() else "not a regular file"
    except OSError as error:
        return error.strerror or str(error)


class NameIndex:
    """Finds the file that a table means, even if the table and the disk spell its name differently.

    Names are equal if they differ only in the Unicode form (macOS decomposes, most tables compose), then also if they
    differ in case or in the slash.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = set(names)
        self._composed: dict[str, list[str]] = {}
        self._plain: dict[str, list[str]] = {}
        for name in sorted(self._exact):
            self._composed.setdefault(_composed(name), []).append(name)
            self._plain.setdefault(_plain(name), []).append(name)

    def find(self, name: str) -> list[str]:
        """The names that `name` can mean: one if it is clear, none or several otherwise."""
        if name in self._exact:
            return [name]
        return self._composed.get(_composed(name)) or self._plain.get(_plain(name)) or []


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _plain(name: str) -> str:
    return _composed(str(Path(name.replace("\\", "/"))).casefold())
