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
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from melody_jax import folders
from melody_jax.audio import SUFFIXES
from melody_jax.data import tables
from melody_jax.data.tables import EXTRA_VALUES, read_rows, relative_name
from melody_jax.errors import UserError

CAPTION_COLUMNS = ("caption", "text", "description")
METADATA = ("metadata.csv", "metadata.jsonl")
UNCAPTIONED = "uncaptioned"
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
    """Reason for a reject that shows without opening the file: missing, ambiguous, hidden, suffix, unreadable, or
    uncaptioned, which only counts if the file itself has no problem."""
    detail: str = ""
    """Explains `problem`."""


Layout = Callable[[Path, Path | None, bool], Iterator[Recording]]
"""(folder, table, whether names in the table may lie outside of the folder) -> recordings."""


def recordings(
    folder: str | os.PathLike, layout: str, table: str | os.PathLike | None, may_leave: bool = False
) -> list[Recording]:
    """Lists the recordings of a folder, sorted by id; with `may_leave`, tables may name files outside of it.

    Raises:
        UserError: the layout is unknown, the folder or the table is missing or malformed, or no audio exists.
    """
    folder = Path(folder)
    if layout not in LAYOUTS:
        raise UserError(f"--layout {layout!r} is unknown; there are {', '.join(LAYOUTS)}")
    folders.check_present(folder, "audio")
    if layout not in ("files", "audiofolder") and not table:
        raise UserError(
            f"--layout {layout} needs its table: --captions FILE (see melody_jax/data/layouts.py)"
        )
    listed = sorted(
        LAYOUTS[layout](folder, Path(table) if table else None, may_leave),
        key=lambda recording: recording.id,
    )
    if all(recording.problem for recording in listed):
        example = f"; the first of {len(listed)} names: {listed[0].id}" if listed else ""
        raise UserError(
            f"{folder}: holds no audio that layout {layout!r} finds ({', '.join(SUFFIXES)}){example}"
        )
    return listed


def files(folder: Path, table: Path | None, may_leave: bool) -> Iterator[Recording]:
    """Every file below a folder, with the captions of `table`; hidden files that are no audio are left out."""
    captions = read_captions(table, folder, may_leave) if table else None
    yield from _captioned_files(folder, captions, {table.resolve()} if table else set())


def audiofolder(folder: Path, table: Path | None, may_leave: bool) -> Iterator[Recording]:
    """Hugging Face's AudioFolder: each metadata.csv or metadata.jsonl names files relative to its own folder."""
    if table:
        paths = [table]
    else:
        paths = [folder / name for name in folders.walk(folder) if name.rpartition("/")[2] in METADATA]
    if not paths:
        raise UserError(
            f"{folder}: has no metadata.csv or metadata.jsonl; use --layout files for audio alone"
        )
    captions: dict[str, list[str]] = {}
    for path in paths:
        base = path.parent.relative_to(folder) if path.is_relative_to(folder) else Path()
        for line, row in read_rows(path, ("file_name",), CAPTION_COLUMNS):
            place = f"{path}, line {line}"
            if not isinstance(row.get("file_name"), str) or not any(
                row.get(name) for name in CAPTION_COLUMNS
            ):
                raise UserError(f"{place}: needs file_name and one of {', '.join(CAPTION_COLUMNS)}")
            name = relative_name(str(base / row["file_name"].strip()), folder, may_leave, place)
            captions.setdefault(name, []).extend(tables.texts(row, CAPTION_COLUMNS, place))
    yield from _captioned_files(folder, captions, {path.resolve() for path in paths})


def _captioned_files(
    folder: Path, captions: dict[str, list[str]] | None, no_audio: set[Path]
) -> Iterator[Recording]:
    """All files below a folder, with the captions of a table, and those that only the table has."""
    skipped: dict[str, str] = {}
    names = folders.walk(folder, skipped)
    index = folders.NameIndex(names)
    by_file: dict[str, tuple[str, ...]] = {}
    for name, texts in (captions or {}).items():
        matches = index.find(name)
        if len(matches) == 1:
            by_file[matches[0]] = (*by_file.get(matches[0], ()), *texts)
        elif matches:
            yield _rejected(
                folder, name, "ambiguous", f"fits {' and '.join(map(folders.printable, matches))}"
            )
        else:
            yield _recording(folder, name, captions=tuple(texts))
    for name in names:
        is_audio = Path(name).suffix.lower() in SUFFIXES
        is_hidden = name.rpartition("/")[2].startswith(".")
        if not is_audio and (is_hidden or (folder / name).resolve() in no_audio):
            continue
        if not is_audio:
            yield _rejected(folder, name, "suffix", f"none of {', '.join(SUFFIXES)}")
        elif name in by_file or (captions is None and not is_hidden):
            yield _recording(folder, name, captions=by_file.get(name, ()))
        elif is_hidden:
            yield _rejected(folder, name, "hidden", "its name begins with a dot")
        else:
            yield _recording(folder, name, problem=UNCAPTIONED, detail="not in the table of captions")
    for name, reason in skipped.items():
        yield _rejected(folder, name, "unreadable", reason)


def musiccaps(folder: Path, table: Path | None, may_leave: bool) -> Iterator[Recording]:
    """One row per 10 s clip. Files are `<ytid>.<suffix>` or `[<ytid>]-[<start>-<end>].<suffix>`."""
    assert table is not None
    stems = {Path(name).stem: name for name in folders.walk(folder) if Path(name).suffix.lower() in SUFFIXES}
    for line, row in read_rows(table, ("ytid", "start_s", "end_s", "aspect_list", "caption")):
        name = relative_name(row["ytid"], folder, may_leave, f"{table}, line {line}")
        start = row["start_s"]
        end = row["end_s"]
        file = stems.get(name) or stems.get(f"[{name}]-[{start}-{end}]") or f"{name}.wav"
        tags = {"aspects": _literal_list(row["aspect_list"], table, line)}
        clip = (_number(start, table, line), _number(end, table, line))
        yield dataclasses.replace(
            _recording(folder, file, captions=(row["caption"],), tags=tags, clip=clip), id=name
        )


def mtg_jamendo(folder: Path, table: Path | None, may_leave: bool) -> Iterator[Recording]:
    """Tags such as `genre---rock`, one per column from TAGS on; audio is 14/214.mp3, or 14/214.low.mp3 of audio-low."""
    assert table is not None
    for line, row in read_rows(table, ("TRACK_ID", "PATH", "TAGS"), extra_values=True):
        tags: dict[str, list[str]] = {"genre": [], "instrument": [], "mood/theme": []}
        for tag in (row["TAGS"], *row.get(EXTRA_VALUES, ())):
            kind, _, value = tag.partition("---")
            tags.setdefault(kind, []).append(value)
        name = relative_name(row["PATH"], folder, may_leave, f"{table}, line {line}")
        names = (name, name.replace(".mp3", ".low.mp3"))
        yield dataclasses.replace(
            _recording(folder, *names, captions=_joined(tags), tags=tags), id=row["TRACK_ID"]
        )


def fma(folder: Path, table: Path | None, may_leave: bool) -> Iterator[Recording]:
    """Three header lines (group, name, `track_id`); audio is 000/000002.mp3; genres.csv, if present, names genres.

    A folder named fma_small, fma_medium or fma_large is expected to hold only that subset and smaller ones.
    """
    assert table is not None
    subsets = FMA_SUBSETS
    if folder.name.removeprefix("fma_") in FMA_SUBSETS:
        subsets = FMA_SUBSETS[: FMA_SUBSETS.index(folder.name.removeprefix("fma_")) + 1]
    genres = table.with_name("genres.csv")
    titles = (
        {row["genre_id"]: row["title"] for _, row in read_rows(genres, ("genre_id", "title"))}
        if folders.size_of(genres) >= 0
        else {}
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


def song_describer(folder: Path, table: Path | None, may_leave: bool) -> Iterator[Recording]:
    """One row per caption; the table names 34/1004034.mp3, the archive contains 34/1004034.2min.mp3."""
    assert table is not None
    captions: dict[str, list[str]] = {}
    for line, row in read_rows(table, ("track_id", "caption", "path")):
        name = relative_name(row["path"], folder, may_leave, f"{table}, line {line}")
        captions.setdefault(name, []).append(row["caption"].strip())
    for path, texts in captions.items():
        names = (path.replace(".mp3", ".2min.mp3"), path)
        yield dataclasses.replace(_recording(folder, *names, captions=tuple(texts)), id=path)


LAYOUTS: dict[str, Layout] = {
    "files": files,
    "audiofolder": audiofolder,
    "musiccaps": musiccaps,
    "mtg-jamendo": mtg_jamendo,
    "fma": fma,
    "song-describer": song_describer,
}


def read_captions(path: Path, folder: Path = Path(), may_leave: bool = False) -> dict[str, list[str]]:
    """Reads file name -> captions from a .csv (with a header) or .jsonl with file and caption.

    Raises:
        UserError: another suffix, a missing column, a row without a file or a caption or with too many values, a file
            outside of `folder` unless `may_leave` is set, or no rows.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"{path}: captions must be a .csv or .jsonl file with file and caption")
    captions: dict[str, list[str]] = {}
    for line, row in read_rows(path, ("file", "caption")):
        place = f"{path}, line {line}"
        if not isinstance(row.get("file"), str) or not row["file"].strip():
            raise UserError(f"{place}: needs a file and a caption, both text")
        name = relative_name(row["file"], folder, may_leave, place)
        captions.setdefault(name, []).extend(tables.texts(row, ("caption",), place))
    if not captions:
        raise UserError(f"{path}: holds no captions")
    return captions


def _recording(folder: Path, *names: str, **fields: Any) -> Recording:
    """A recording of the first name that exists, or of the first name, marked as missing."""
    for name in names:
        size = folders.size_of(folder / name)
        if size >= 0:
            return Recording(id=folders.printable(name), path=str(folder / name), size=size, **fields)
    return _rejected(folder, names[0], "missing", "the file does not exist", **fields)


def _rejected(folder: Path, name: str, problem: str, detail: str, **fields: Any) -> Recording:
    path = str(folder / name)
    values = {**fields, "problem": problem, "detail": detail}
    return Recording(id=folders.printable(name), path=path, size=folders.size_of(path), **values)


def _joined(tags: dict[str, list[str]]) -> tuple[str, ...]:
    words = [value for values in tags.values() for value in values]
    return (", ".join(words),) if words else ()


def _fma_rows(path: Path) -> Iterator[tuple[int, dict[tuple[str, str], str]]]:
    rows = tables.values(path)
    (_, groups), (_, names), (_, index) = (next(rows, (0, [""])) for _ in range(3))
    columns = [("track_id", ""), *zip(groups[1:], names[1:], strict=False)]
    needed = {("set", "subset"), ("track", "genre_top"), ("track", "genres")}
    if index[:1] != ["track_id"] or not needed <= set(columns):
        raise UserError(f"{path}: not FMA's tracks.csv, whose header has three lines")
    for line, values in rows:
        row = dict(zip(columns, values, strict=False))
        if len(row) < len(columns) or not row["track_id", ""].isdecimal():
            raise UserError(f"{path}, line {line}: not a row of FMA's tracks.csv")
        yield line, row


def _literal_list(text: str, path: Path, line: int) -> list[Any]:
    """The published tables contain lists in Python notation; `literal_eval` reads values, never code."""
    try:
        values = ast.literal_eval(text) if text.strip() else []
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # deep nesting
        values = None
    if not isinstance(values, list):
        raise UserError(f"{path}, line {line}: {text[:40]!r} is not a list")
    return values


def _number(text: str, path: Path, line: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{path}, line {line}: {text!r} is not a number of seconds") from None
