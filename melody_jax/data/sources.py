"""Music to prepare: folders of audio shards, or a folder of audio files with captions in a CSV or JSONL file.

A caption file has the columns (or keys) `file`, relative to the folder, and `caption`; a file may have several rows.
"""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from melody_jax import audio
from melody_jax.data.records import MANIFEST, RecordSource, decode_json, open_shards
from melody_jax.errors import UserError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".opus")


class Source(Protocol):
    """Pieces of music by number. `settings` identify the source: a resumed run must find the same."""

    settings: dict[str, Any]

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What to call piece i in messages."""
        ...

    def read(self, i: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Piece i: audio float32 (T,) at 24 kHz and its meta {"id", "facts", "captions"}. Raises `UserError`."""
        ...


def open_source(folder: str | os.PathLike, captions: str | os.PathLike | None = None) -> Source:
    """The pieces of a folder: of shards if it has a manifest, else of audio files with the captions of `captions`.

    Raises:
        UserError: an empty or missing folder, or captions and audio that do not match.
    """
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        if captions:
            raise UserError(f"{folder} holds shards, whose captions are inside; --captions is for audio files")
        return ShardSource(open_shards(folder, "audio"))
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of shards or audio files")
    return FileSource(folder, Path(captions) if captions else None)


class ShardSource:
    """The records of audio shards."""

    def __init__(self, source: RecordSource) -> None:
        self._source = source
        self.settings = {"shards": [shard.sha256 for shard in source.manifest.shards]}

    def __len__(self) -> int:
        return len(self._source)

    def name(self, i: int) -> str:
        """The folder and number of record i."""
        return f"{self._source.folder} record {i}"

    def read(self, i: int) -> tuple[np.ndarray, dict[str, Any]]:
        """The whole piece, decoded."""
        record = self._source[i]
        return audio.decode_flac(record["audio"].tobytes()), decode_json(record["meta"])


class FileSource:
    """Audio files below a folder, in the order of their paths."""

    def __init__(self, folder: Path, captions: Path | None) -> None:
        self._folder = folder
        self._files = sorted(
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES
        )
        if not self._files:
            raise UserError(f"{folder}: holds no audio files ({', '.join(SUFFIXES)})")
        self._captions = _match(self._files, read_captions(captions), captions, folder) if captions else {}
        self.settings = {
            "files": [[file, (folder / file).stat().st_size] for file in self._files],
            "captions": self._captions,
        }

    def __len__(self) -> int:
        return len(self._files)

    def name(self, i: int) -> str:
        """The path of file i below the folder."""
        return self._files[i]

    def read(self, i: int) -> tuple[np.ndarray, dict[str, Any]]:
        """The file as mono 24 kHz, with its captions and no facts."""
        file = self._files[i]
        captions = self._captions.get(file, [])
        return audio.read(self._folder / file), {"id": file, "facts": {}, "captions": captions}


def read_captions(path: Path) -> dict[str, list[str]]:
    """File name -> its captions, from .csv (with a header) or .jsonl.

    Raises:
        UserError: another suffix, a missing column, or a row without a file or a caption, named by its line.
    """
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: captions must be a .csv or .jsonl file with file and caption")
    found: dict[str, list[str]] = {}
    try:
        for line, row in readers[path.suffix.lower()](path):
            file, caption = row.get("file"), row.get("caption")
            if not isinstance(file, str) or not isinstance(caption, str) or not file.strip() or not caption.strip():
                raise UserError(f"{path}, line {line}: needs a file and a caption, both text")
            found.setdefault(str(Path(file.strip())), []).append(caption.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not found:
        raise UserError(f"{path}: holds no captions")
    return found


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in ("file", "caption") if column not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{path}: has no column {missing[0]!r}; its first line must be a header: file,caption")
        for row in reader:
            yield reader.line_num, row


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {line}: not a JSON object")
            yield line, row


def _match(files: list[str], captions: dict[str, list[str]], path: Path, folder: Path) -> dict[str, list[str]]:
    without_audio = [file for file in captions if file not in set(files)]
    if without_audio:
        raise UserError(
            f"{path}: {len(without_audio)} captioned files are not in {folder}, the first is {without_audio[0]}"
        )
    without_caption = [file for file in files if file not in captions]
    if without_caption:
        raise UserError(
            f"{folder}: {len(without_caption)} audio files have no caption in {path}, the first is {without_caption[0]}"
        )
    return captions
