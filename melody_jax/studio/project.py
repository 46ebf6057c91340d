"""The project folder: the takes of a musician, on the disk before they are listed.

    PROJECT/takes/ID.flac       the sound, as `melody sample --out ID.flac` writes it: equal bytes
    PROJECT/takes/ID.json       the take (takes.py), written after its sound
    PROJECT/sources/SHA256.flac sounds that takes are made from: uploads, and takes that others were made from
    PROJECT/uploads/            sounds that are being decoded (uploads.py)
    PROJECT/votes.jsonl         votes (votes.py)
    PROJECT/lock                locked while a process has the project open

Sounds have 16 bits, as all files of `melody sample`; a sample rate that FLAC cannot state gives .wav. Each file appears
when it is complete and on the disk. A process that is killed at any time leaves at most files that the next start
removes: `.*.part`, a sound without its JSON, what is in `uploads`, and sources that no take uses.
"""

import bisect
import contextlib
import dataclasses
import hashlib
import json
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from melody_jax import audio, files
from melody_jax.audio_format import fits_flac
from melody_jax.errors import InputWarning, UserError
from melody_jax.sampling import notation
from melody_jax.sampling.request import Request
from melody_jax.studio.takes import (
    SOURCE_FILE,
    TAKE_FILE,
    TAKE_ID,
    Release,
    Take,
    kind_of,
    parse_take,
    request_of,
    shorten_title,
    sounds_of,
    source_names,
    title_of,
)

MAX_JSON_BYTES = 1 << 20
"""Size of the largest JSON file of a take that is read."""
MAX_PAGE = 100
"""Takes that one page of the history has at most."""
MAX_UNUSED_SOURCES = 200
"""Sources that no take uses yet; more are refused until the project is opened again."""


class UnknownTake(UserError):
    """The project has no take, or no source, of this name."""


class Project:
    """An open project; any thread may call it. Use `open_project`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.takes_folder = files.make_folder(folder / "takes")
        self.sources_folder = files.make_folder(folder / "sources")
        shutil.rmtree(folder / "uploads", ignore_errors=True)
        self.uploads_folder = files.make_folder(folder / "uploads")
        self._lock = threading.RLock()
        self._takes: dict[str, Take] = {}
        self._times: list[tuple[float, str]] = []  # (created, id), rising
        self._used_sources: set[str] = set()
        self._unused_sources: set[str] = set()
        self._read_takes()

    @property
    def votes_path(self) -> Path:
        """The file of votes."""
        return self.folder / "votes.jsonl"

    def add_take(
        self,
        samples: Float32[np.ndarray, " T *C"],
        sample_rate: int,
        request: Request,
        release: Release,
        *,
        model_hash: str,
        parent: str | None = None,
        title: str = "",
        similarity: float | None = None,
        seconds_taken: float = 0.0,
    ) -> Take:
        """Writes a clip and its take. The sounds of the request must be sources of this project.

        Raises `UserError` for samples that are no audio, for a sound that is not a source, and if it cannot be written.
        """
        self.check_sounds(request)
        settings = notation.request_to_json(request)
        names = set(source_names(settings))
        take_id = secrets.token_hex(8)
        path = self.takes_folder / f"{take_id}{_suffix(sample_rate)}"
        audio.write(path, samples, sample_rate, sync=True)
        try:
            with self._lock:
                latest = self._times[-1][0] if self._times else 0.0
                take = Take(
                    id=take_id,
                    parent=parent,
                    kind=kind_of(request),
                    title=shorten_title(title) or title_of(request),
                    settings=settings,
                    release=release.name,
                    system=release.system,
                    distilled=release.distilled,
                    model_hash=model_hash,
                    similarity=similarity,
                    seconds=len(samples) / sample_rate,
                    sample_rate=sample_rate,
                    channels=audio.channel_count(samples),
                    seconds_taken=round(seconds_taken, 3),
                    created=max(round(time.time(), 6), round(latest + 1e-6, 6)),
                    file=path.name,
                    bytes=path.stat().st_size,
                    sha256=files.file_hash(path),
                )
                self._write(take)
                self._add(take)
                self._used_sources |= names
                self._unused_sources -= names
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return take

    def check_sounds(self, request: Request) -> None:
        """Raises `UserError` unless all sounds of a request are sources of this project, given as paths."""
        for sound in sounds_of(request):
            if not isinstance(sound, Path) or sound != self.sources_folder / sound.name:
                raise UserError("a sound of the request is not one of the project's; upload it first")
            self.source(sound.name)

    def take(self, take_id: str) -> Take:
        """The take of an id. Raises `UnknownTake`."""
        with self._lock:
            if take_id not in self._takes:
                raise UnknownTake("the project has no such take; it may have been deleted")
            return self._takes[take_id]

    def page(self, limit: int = 20, before: float | None = None, favourites: bool = False) -> list[Take]:
        """At most `limit` takes, newest first, all or the favourites.

        before: the `created` of the last take of the previous page. Raises `UserError` for a limit out of range.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise UserError(f"limit is {limit}; it must be from 1 to {MAX_PAGE}")
        chosen: list[Take] = []
        with self._lock:
            end = len(self._times) if before is None else bisect.bisect_left(self._times, (before, ""))
            for _, take_id in reversed(self._times[:end]):
                take = self._takes[take_id]
                if take.favourite or not favourites:
                    chosen.append(take)
                if len(chosen) == limit:
                    break
        return chosen

    def takes(self) -> list[Take]:
        """All takes, oldest first."""
        with self._lock:
            return [self._takes[take_id] for _, take_id in self._times]

    def __len__(self) -> int:
        """The number of takes."""
        return len(self._takes)

    def path(self, take_id: str) -> Path:
        """The sound file of a take. Raises `UnknownTake`."""
        return self.takes_folder / self.take(take_id).file

    def read(self, take_id: str) -> Float32[np.ndarray, " T *C"]:
        """The samples of a take at its sample rate. Raises `UnknownTake`, and `UserError` for a damaged file."""
        return audio.read_as_stored(self.path(take_id))[0]

    def request(self, take_id: str, **changes: Any) -> Request:
        """The request that made a take, with some fields changed. Raises `UnknownTake`, and as `Request`."""
        request = request_of(self.take(take_id).settings, self.sources_folder)
        return dataclasses.replace(request, **changes)

    def set_favourite(self, take_id: str, favourite: bool) -> Take:
        """Marks a take as a favourite, or not. Raises `UnknownTake`."""
        return self._replace(take_id, favourite=favourite)

    def rename(self, take_id: str, title: str) -> Take:
        """Gives a take another title; an empty one leaves it. Raises `UnknownTake`."""
        return self._replace(take_id, title=shorten_title(title) or self.take(take_id).title)

    def delete(self, take_id: str) -> None:
        """Deletes a take. Takes that were made from it stay, and so do their sources. Raises `UnknownTake`."""
        with self._lock:
            take = self.take(take_id)
            (self.takes_folder / f"{take_id}.json").unlink(missing_ok=True)
            (self.takes_folder / take.file).unlink(missing_ok=True)
            del self._takes[take_id]
            self._times.remove((take.created, take_id))

    def add_source(self, samples: Float32[np.ndarray, " T *C"], sample_rate: int) -> Path:
        """Stores a sound in 16 bits under the hash of its file; `Request` takes the path as `source` or `melody`.

        Raises `UserError` for samples that are no audio, if it cannot be written, and for too many unused sources.
        """
        suffix = _suffix(sample_rate)
        data = audio.encode(samples, sample_rate, audio.FORMATS[suffix], place="the sound")
        name = f"{hashlib.sha256(data).hexdigest()}{suffix}"
        with self._lock:
            if name not in self._used_sources:
                if len(self._unused_sources - {name}) >= MAX_UNUSED_SOURCES:
                    raise UserError(
                        f"{MAX_UNUSED_SOURCES} uploaded sounds are not used by any take; use one, or restart the studio"
                    )
                self._unused_sources.add(name)
        return self._write_source(name, data)

    def take_as_source(self, take_id: str) -> Path:
        """The sound of a take as a source, which stays when the take is deleted. Raises as `read`."""
        take = self.take(take_id)
        data = files.read_bytes(self.path(take_id))
        if hashlib.sha256(data).hexdigest() != take.sha256:
            raise UserError(f"{take.file}: not the clip that was written; make it again")
        return self._write_source(f"{take.sha256}{Path(take.file).suffix}", data)

    def source(self, name: str) -> Path:
        """The path of a source by its file name. Raises `UnknownTake` for any other name."""
        path = self.sources_folder / name if SOURCE_FILE.fullmatch(name) else None
        if path is None or not path.is_file():
            raise UnknownTake("the project has no such sound; upload it again")
        return path

    def _write_source(self, name: str, data: bytes) -> Path:
        path = self.sources_folder / name
        if not path.is_file():
            files.write_bytes(path, data, sync=True)
        return path

    def _write(self, take: Take) -> None:
        """Writes the JSON file of a take. Raises `UserError` if that fails."""
        text = json.dumps(dataclasses.asdict(take), indent=1, ensure_ascii=False) + "\n"
        files.write_bytes(self.takes_folder / f"{take.id}.json", text.encode(), sync=True)

    def _replace(self, take_id: str, **changes: Any) -> Take:
        with self._lock:
            take = dataclasses.replace(self.take(take_id), **changes)
            self._write(take)
            self._takes[take_id] = take
            return take

    def _add(self, take: Take) -> None:
        self._takes[take.id] = take
        bisect.insort(self._times, (take.created, take.id))

    def _read_takes(self) -> None:
        """Reads the takes, warns of damaged ones, and removes what a killed process left."""
        for folder in (self.takes_folder, self.sources_folder):
            files.remove_unfinished(folder)
        damaged = False
        for path in sorted(self.takes_folder.glob("*.json")):
            if not TAKE_ID.fullmatch(path.stem):
                continue
            try:
                take = self._read_take(path)
                self._used_sources |= set(source_names(take.settings))
                self._add(take)
            except UserError as error:
                damaged = True
                warnings.warn(f"{error}; the take is left out", InputWarning, stacklevel=4)
        for path in self.takes_folder.iterdir():
            if TAKE_FILE.fullmatch(path.name) and not path.with_suffix(".json").exists():
                path.unlink()
        for path in () if damaged else self.sources_folder.iterdir():  # a damaged take may need any source
            if SOURCE_FILE.fullmatch(path.name) and path.name not in self._used_sources:
                path.unlink()

    def _read_take(self, path: Path) -> Take:
        """The take of a JSON file. Raises `UserError`, with the path, for a damaged one or one without its sound."""
        value = files.read_json(path, MAX_JSON_BYTES)
        try:
            take = parse_take(value)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        sound = self.takes_folder / take.file
        if take.id != path.stem or not sound.is_file() or sound.stat().st_size != take.bytes:
            raise UserError(f"{path}: its sound {take.file} is missing or not as it was written")
        return take


@contextlib.contextmanager
def open_project(folder: Path) -> Iterator[Project]:
    """Opens a project, or makes one; it is locked for other processes until the context ends.

    Warns (`InputWarning`, one line each) of damaged files, and leaves them out and in place. Raises `UserError` if the
    folder cannot be used, or another process has it open.
    """
    with files.claim_folder(folder) as is_free:
        if not is_free:
            raise UserError(f"{folder}: open in another studio; close that one, or use another folder")
        yield Project(Path(folder))


def _suffix(sample_rate: int) -> str:
    """The suffix of a file that holds this sample rate without loss."""
    return ".flac" if fits_flac(sample_rate) else ".wav"
