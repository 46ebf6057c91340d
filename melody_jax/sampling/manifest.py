"""What a batch job has to make, and what it has made: a file of prompts, and manifests, one JSON object a line.

A line of prompts has a "prompt" and may have an "id", which becomes the file's name, and any field of `Request`; the
prompt of a blend is a list of {"text" or "audio", "weight"}, a story a list of {"at", "prompt"}, regions are a list of
[begin, end]. Sound files are looked for from the folder of the prompts. A line of a manifest
has all of the clip's request, its id and file, the hash of the networks, the seconds it took and when it was made.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from melody_jax.errors import UserError
from melody_jax.sampling.request import Part, Prompt, Request, Scene, make_requests

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
"""An id: nothing in it leads out of a folder or hides a file."""
PARTS = "manifest*.jsonl"
"""The manifests of a job, one a process."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """One clip to make."""

    line: int
    """Where in the file it is asked for, from 1."""
    name: str
    """Its id, unique in the job."""
    request: Request
    """What is wanted."""
    settings: dict[str, Any]
    """The request as JSON has it: while it is the same, a clip need not be made again."""


def read_items(path: Path, defaults: dict[str, Any]) -> list[Item]:
    """The clips that a file of prompts asks for, in order; empty lines do not count.

    What a line leaves out is taken from `defaults`, its seed from the default seed plus its place (from 0), its id from
    the place.

    Raises:
        UserError: the file cannot be read or is empty, or lines are bad: names the first and counts the others.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as UTF-8 text ({getattr(error, 'strerror', None) or error})"
        ) from None
    items: dict[str, Item] = {}
    bad: list[str] = []
    for place, number in enumerate(number for number, line in enumerate(lines) if line.strip()):
        try:
            item = _item(json.loads(lines[number]), number + 1, place, defaults, path.parent)
            if items.setdefault(item.name.casefold(), item) is not item:
                raise UserError(f"id {item.name!r} is an earlier line's too")
        except json.JSONDecodeError as error:
            bad.append(f"line {number + 1}: not JSON ({error.msg})")
        except UserError as error:
            bad.append(f"line {number + 1}: {error}")
    refuse_lines(bad, path)
    if not items:
        raise UserError(f'{path}: no prompts; a line is like {{"prompt": "slow sad cello"}}')
    return list(items.values())


def refuse_lines(bad: list[str], path: Path) -> None:
    """Raises `UserError` with the first of what is said of lines of the file, if anything is."""
    if bad:
        others = f" (and {len(bad) - 1} more bad lines)" if len(bad) > 1 else ""
        raise UserError(f"{path}, {bad[0]}{others}")


def _item(line: Any, number: int, place: int, defaults: dict[str, Any], folder: Path) -> Item:
    if not isinstance(line, dict):
        raise UserError('a line must be an object with a "prompt"')
    own = {name: value for name, value in line.items() if name not in ("id", "prompt", "story", "regions")}
    for name, value in own.items():
        if isinstance(value, list | dict) and name != "regions":
            raise UserError(f"{name} is {value}; a clip has one value of it")
    if "regions" in own:
        own["regions"] = tuple(own["regions"]) if isinstance(own["regions"], list) else own["regions"]
    if own.get("source") is not None:
        own["source"] = folder / str(own["source"])
    settings = defaults | {"seed": defaults.get("seed", 0) + place} | own
    if "story" in line:
        scenes = _objects(line["story"], "story", {"at", "prompt"})
        settings["story"] = tuple(
            Scene(at=one["at"], prompt=_prompt(one["prompt"], folder)) for one in scenes
        )
    if "source" in line:
        settings["source"] = folder / str(line["source"])
    if "regions" in line:
        settings["regions"] = _regions(line["regions"])
    name = str(line.get("id", f"{place:06d}"))
    if not NAME.fullmatch(name):
        raise UserError(
            f"id {name!r} is no file name; it must be 1 to 100 of A-Z a-z 0-9 . _ - and not begin with a ."
        )
    (request,) = make_requests([_prompt(line.get("prompt", ""), folder)], settings)
    return Item(line=number, name=name, request=request, settings=_plain(request))


def _prompt(value: Any, folder: Path) -> Prompt:
    if isinstance(value, str):
        return value
    parts = _objects(value, "prompt", set())
    known = {field.name for field in dataclasses.fields(Part)}
    for part in parts:
        if unknown := part.keys() - known:
            raise UserError(f"a prompt's part has {unknown.pop()!r}; it has {', '.join(sorted(known))}")
        if "audio" in part:
            part["audio"] = folder / str(part["audio"])
    return tuple(Part(**part) for part in parts)


def _regions(value: Any) -> tuple[tuple[float, float], ...]:
    pairs = value if isinstance(value, list) else [value]
    for pair in pairs:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(end, int | float) for end in pair)
        ):
            raise UserError(f"regions are {value}; they must be a list of [begin, end] in seconds")
    return tuple((begin, end) for begin, end in pairs)


def _objects(value: Any, name: str, needed: set[str]) -> list[dict[str, Any]]:
    """A list of objects with at least the `needed` keys, and no others if there are any."""
    if not isinstance(value, list) or not all(
        isinstance(v, dict) and (not needed or v.keys() == needed) for v in value
    ):
        what = f" that have {' and '.join(sorted(needed))}" if needed else ""
        raise UserError(f"{name} is {value}; it must be a list of objects{what}")
    return value


def _plain(value: Any) -> Any:
    """A request, or something in it, as JSON has it; sound by the hash of its file."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return {"file": value.name, "sha256": _file_hash(value)}
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    return value


@functools.lru_cache(maxsize=1024)
def _file_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


class Manifest:
    """What the processes of a job in one folder have made, `entries` by id, and this process's own part of it.

    A line is added once its clip's file is there; a line that a kill has torn counts for nothing and is cut off.
    """

    def __init__(self, part: IO[bytes], entries: dict[str, dict[str, Any]]) -> None:
        self._part = part
        self.entries = entries

    def add(self, entry: dict[str, Any]) -> None:
        """Writes a line down for good: {"id", "made_at", ...}. Raises `UserError` if it cannot be written."""
        try:
            self._part.write((json.dumps(entry, ensure_ascii=False) + "\n").encode())
            self._part.flush()
            os.fsync(self._part.fileno())
        except OSError as error:
            raise UserError(f"{self._part.name}: cannot be written ({error.strerror})") from error
        self.entries[entry["id"]] = entry


@contextlib.contextmanager
def opened(folder: Path, process: int, processes: int) -> Iterator[Manifest]:
    """The manifest of the job in `folder`, to be added to by process `process` of `processes` alone.

    Raises:
        UserError: the folder cannot be written, a line in the middle is damaged, or this part is being written already.
    """
    path = folder / ("manifest.jsonl" if processes == 1 else f"manifest-{process:03d}.jsonl")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = open(path, "a+b")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    with part:
        _lock(part)
        _cut_torn_line(part)
        yield Manifest(part, entries(folder))


def _lock(part: IO[bytes]) -> None:
    """The system lets go of it however the process ends. Elsewhere than on POSIX nothing is locked."""
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{part.name}: another process is writing it; give each its own --process and the same --processes"
            ) from None


def _cut_torn_line(part: IO[bytes]) -> None:
    part.seek(0)
    content = part.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        part.truncate(whole)


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    """The latest line of each id in all parts; unfinished last lines are other processes' at work.

    Raises `UserError` where a line in the middle is damaged.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(PARTS)):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                entry = json.loads(line)
                before = found.get(entry["id"])
                if before is None or entry["made_at"] >= before["made_at"]:
                    found[entry["id"]] = entry
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path}, line {number}: damaged; delete the line, and its clip is made again"
                ) from None
    return found
