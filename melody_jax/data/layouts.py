"""Common layouts of music collections, read into one list of recordings. Nothing is decoded here.

A layout is a function (folder of the audio, table) -> recordings. The list also contains recordings that the table
names but the folder lacks, and audio without a caption in the table: `melody prepare` counts both as rejects.

files          any folder; the table is optional: CSV with a header, or JSONL, with `file` and `caption`
audiofolder    metadata.csv or metadata.jsonl in the folder of the files, with `file_name` and a caption
               (huggingface.co/docs/hub/datasets-audio)
musiccaps      musiccaps-public.csv (huggingface.co/datasets/google/MusicCaps); files are named by YouTube id and hold
               the clip or the full video
mtg-jamendo    data/autotagging*.tsv and the audio in folders 00 to 99 (github.com/MTG/mtg-jamendo-dataset)
fma            fma_metadata/tracks.csv and fma_small, _medium, _large or _full (github.com/mdeff/fma)
song-describer song_describer.csv and audio/ (zenodo.org/records/10072001)
"""

import ast
import csv
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from melody_jax.errors import UserError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".opus")
CAPTION_COLUMNS = ("caption", "text", "description")
EXTRA_VALUES = ""
"""The key of a row's values beyond the header: MTG-Jamendo's tags."""
FMA_SUBSETS = ("small", "medium", "large", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """One piece of music before it is decoded."""

    id: str
    """Name in messages and records, unique within a source."""
    path: str
    """The audio file, or the folder of the TFDS dataset."""
    size: int
    """Size of the file in bytes, -1 if it is missing; a resumed run compares it."""
    record: int = -1
    """Index of the TFDS example; -1: `path` is an audio file."""
    clip: tuple[float, float] | None = None
    """The captioned part, start and end in seconds, if the file may be longer."""
    captions: tuple[str, ...] = ()
    """Captions; for collections without captions, the tags joined by commas."""
    tags: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Labels of the collection by kind."""
    problem: str = ""
    """Reason for a reject that shows without opening the file: missing, suffix or uncaptioned."""


def recordings(folder: str | os.PathLike, layout: str, table: str | os.PathLike | None) -> list[Recording]:
    """Lists the recordings of a folder, sorted by id.

    Raises:
        UserError: the layout is unknown, the folder or the table is missing or malformed, or no audio exists.
    """
    folder = Path(folder)
    if layout not in LAYOUTS:
        raise UserError(f"--layout {layout!r} is unknown; there are {', '.join(LAYOUTS)}")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of audio")
    if layout not in ("files", "audiofolder") and not table:
        raise UserError(
            f"--layout {layout} needs its table: --captions FILE (see melody_jax/data/layouts.py)"
        )
    listed = sorted(
        LAYOUTS[layout](folder, Path(table) if table else None), key=lambda recording: recording.id
    )
    if all(recording.problem for recording in listed):
        example = f"; the first of {len(listed)} names: {listed[0].id}" if listed else ""
        raise UserError(
            f"{folder}: holds no audio that layout {layout!r} finds ({', '.join(SUFFIXES)}){example}"
        )
    return listed


def files(folder: Path, table: Path | None) -> Iterator[Recording]:
    """Every file below a folder, with the captions of `table`; hidden files are skipped."""
    captions = read_captions(table) if table else None
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    for name in names:
        if Path(name).name.startswith(".") or (table and (folder / name).samefile(table)):
            continue
        if Path(name).suffix.lower() not in SUFFIXES:
            yield _recording(folder, name, problem="suffix")
        elif captions is not None and name not in captions:
            yield _recording(folder, name, problem="uncaptioned")
        else:
            yield _recording(folder, name, captions=tuple((captions or {}).get(name, ())))
    for name in set(captions or ()) - set(names):
        yield _recording(folder, name, captions=tuple((captions or {})[name]))


def audiofolder(folder: Path, table: Path | None) -> Iterator[Recording]:
    """Hugging Face's AudioFolder: each metadata.csv or metadata.jsonl names files relative to its own folder."""
    tables = [table] if table else sorted([*folder.rglob("metadata.csv"), *folder.rglob("metadata.jsonl")])
    if not tables:
        raise UserError(
            f"{folder}: has no metadata.csv or metadata.jsonl; use --layout files for audio alone"
        )
    for path in tables:
        rows = _json_lines(path) if path.suffix == ".jsonl" else _csv(path, ("file_name",))
        captions: dict[str, list[str]] = {}
        for line, row in rows:
            column = next((name for name in CAPTION_COLUMNS if row.get(name)), None)
            if not isinstance(row.get("file_name"), str) or column is None:
                raise UserError(
                    f"{path}, line {line}: needs file_name and one of {', '.join(CAPTION_COLUMNS)}"
                )
            captions.setdefault(str(Path(row["file_name"])), []).append(str(row[column]).strip())
        base = path.parent.relative_to(folder) if path.is_relative_to(folder) else Path()
        for name, texts in captions.items():
            yield _recording(folder, str(base / name), captions=tuple(texts))


def musiccaps(folder: Path, table: Path | None) -> Iterator[Recording]:
    """One row per 10 s clip. Files are `<ytid>.<suffix>` or `[<ytid>]-[<start>-<end>].<suffix>`."""
    assert table is not None
    stems = {
        path.stem: str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
    }
    for line, row in _csv(table, ("ytid", "start_s", "end_s", "aspect_list", "caption")):
        name = row["ytid"]
        start = row["start_s"]
        end = row["end_s"]
        file = stems.get(name) or stems.get(f"[{name}]-[{start}-{end}]") or f"{name}.wav"
        tags = {"aspects": _literal_list(row["aspect_list"], table, line)}
        clip = (_number(start, table, line), _number(end, table, line))
        yield dataclasses.replace(
            _recording(folder, file, captions=(row["caption"],), tags=tags, clip=clip), id=name
        )


def mtg_jamendo(folder: Path, table: Path | None) -> Iterator[Recording]:
    """Tags such as `genre---rock`, one per column from TAGS on; audio is 14/214.mp3, or 14/214.low.mp3 of audio-low."""
    assert table is not None
    for _, row in _csv(table, ("TRACK_ID", "PATH", "TAGS"), delimiter="\t"):
        tags: dict[str, list[str]] = {"genre": [], "instrument": [], "mood/theme": []}
        for tag in (row["TAGS"], *row.get(EXTRA_VALUES, ())):
            kind, _, value = tag.partition("---")
            tags.setdefault(kind, []).append(value)
        names = (row["PATH"], row["PATH"].replace(".mp3", ".low.mp3"))
        yield dataclasses.replace(
            _recording(folder, *names, captions=_joined(tags), tags=tags), id=row["TRACK_ID"]
        )


def fma(folder: Path, table: Path | None) -> Iterator[Recording]:
    """Three header lines (group, name, `track_id`); audio is 000/000002.mp3; genres.csv, if present, names genres.

    A folder named fma_small, fma_medium or fma_large is expected to hold only that subset and smaller ones.
    """
    assert table is not None
    subsets = FMA_SUBSETS
    if folder.name.removeprefix("fma_") in FMA_SUBSETS:
        subsets = FMA_SUBSETS[: FMA_SUBSETS.index(folder.name.removeprefix("fma_")) + 1]
    genres = table.with_name("genres.csv")
    titles = (
        {row["genre_id"]: row["title"] for _, row in _csv(genres, ("title",))} if genres.is_file() else {}
    )
    for line, row in _fma_rows(table):
        if row["set", "subset"] not in subsets:
            continue
        ids = [str(number) for number in _literal_list(row["track", "genres"], table, line)]
        names = [row["track", "genre_top"], *(titles[number] for number in ids if number in titles)]
        tags = {"genre": list(dict.fromkeys(name for name in names if name))}
        track = f"{int(row['track_id', '']):06d}"
        recording = _recording(folder, f"{track[:3]}/{track}.mp3", captions=_joined(tags), tags=tags)
        yield dataclasses.replace(recording, id=track)


def song_describer(folder: Path, table: Path | None) -> Iterator[Recording]:
    """One row per caption; the table names 34/1004034.mp3, the archive contains 34/1004034.2min.mp3."""
    assert table is not None
    captions: dict[str, list[str]] = {}
    for _, row in _csv(table, ("track_id", "caption", "path")):
        captions.setdefault(row["path"], []).append(row["caption"].strip())
    for path, texts in captions.items():
        names = (path.replace(".mp3", ".2min.mp3"), path)
        yield dataclasses.replace(_recording(folder, *names, captions=tuple(texts)), id=path)


LAYOUTS: dict[str, Callable[[Path, Path | None], Iterator[Recording]]] = {
    "files": files,
    "audiofolder": audiofolder,
    "musiccaps": musiccaps,
    "mtg-jamendo": mtg_jamendo,
    "fma": fma,
    "song-describer": song_describer,
}


def read_captions(path: Path) -> dict[str, list[str]]:
    """Reads file name -> captions from a .csv (with a header) or .jsonl with file and caption.

    Raises:
        UserError: another suffix, a missing column, a row without a file or a caption, or no rows.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"{path}: captions must be a .csv or .jsonl file with file and caption")
    rows = _json_lines(path) if path.suffix.lower() == ".jsonl" else _csv(path, ("file", "caption"))
    captions: dict[str, list[str]] = {}
    for line, row in rows:
        values = (row.get("file"), row.get("caption"))
        if not all(isinstance(value, str) and value.strip() for value in values):
            raise UserError(f"{path}, line {line}: needs a file and a caption, both text")
        captions.setdefault(str(Path(row["file"].strip())), []).append(row["caption"].strip())
    if not captions:
        raise UserError(f"{path}: holds no captions")
    return captions


def _recording(folder: Path, *names: str, **fields: Any) -> Recording:
    """A recording of the first name that exists, or of the first name, marked as missing."""
    for name in names:
        path = folder / name
        if path.is_file():
            return Recording(id=name, path=str(path), size=path.stat().st_size, **fields)
    return Recording(id=names[0], path=str(folder / names[0]), size=-1, **{**fields, "problem": "missing"})


def _joined(tags: dict[str, list[str]]) -> tuple[str, ...]:
    words = [value for values in tags.values() for value in values]
    return (", ".join(words),) if words else ()


def _csv(path: Path, needed: Sequence[str], delimiter: str = ",") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line, row) of a table with a header; `needed` columns must have values."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey=EXTRA_VALUES, delimiter=delimiter)
            for column in needed:
                if column not in (reader.fieldnames or ()):
                    raise UserError(
                        f"{path}: has no column {column!r}; its first line must name {', '.join(needed)}"
                    )
            for row in reader:
                if any(row[column] is None for column in needed):
                    raise UserError(f"{path}, line {reader.line_num}: the row ends too early")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _fma_rows(path: Path) -> Iterator[tuple[int, dict[tuple[str, str], str]]]:
    csv.field_size_limit(1 << 24)  # artists' biographies are longer than the usual limit
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            groups = next(reader, [])
            names = next(reader, [])
            index = next(reader, [])
            columns = [("track_id", ""), *zip(groups[1:], names[1:], strict=False)]
            needed = {("set", "subset"), ("track", "genre_top"), ("track", "genres")}
            if index[:1] != ["track_id"] or not needed <= set(columns):
                raise UserError(f"{path}: not FMA's tracks.csv, whose header has three lines")
            for values in reader:
                row = dict(zip(columns, values, strict=False))
                if len(row) < len(columns) or not row["track_id", ""].isdecimal():
                    raise UserError(f"{path}, line {reader.line_num}: not a row of FMA's tracks.csv")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
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
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _literal_list(text: str, path: Path, line: int) -> list[Any]:
    """The published tables contain lists in Python notation; `literal_eval` reads values, never code."""
    try:
        values = ast.literal_eval(text) if text.strip() else []
    except (ValueError, SyntaxError):
        values = None
    if not isinstance(values, list):
        raise UserError(f"{path}, line {line}: {text[:40]!r} is not a list")
    return values


def _number(text: str, path: Path, line: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{path}, line {line}: {text!r} is not a number of seconds") from None
