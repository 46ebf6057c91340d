"""Tables of captions: CSV, TSV and JSONL, read row by row. What is ambiguous is an error with the line's number.

CSV has a header. Names of columns may differ in case and in blanks around them; columns may be separated by commas,
semicolons or tabs. Values with the separator stand in quotes: a row with more values than the header is an error.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from melody_jax import files
from melody_jax.errors import UserError

EXTRA_VALUES = ""
"""The key of a row's values beyond the header: MTG-Jamendo's tags."""
SEPARATORS = ",;\t"
FIELD_LIMIT = 1 << 24
"""Bytes of the longest value: artists' biographies in FMA are longer than Python's usual limit."""
MAX_NAME = 4096
"""Longest path of a file in a table, as of Linux."""

Row = dict[str, Any]


def read_rows(
    path: Path, needed: Sequence[str], optional: Sequence[str] = (), extra_values: bool = False
) -> Iterator[tuple[int, Row]]:
    """Yields (line, row) of a .jsonl file, or of a CSV with a header.

    Args:
        path: the table.
        needed: columns of a CSV that must exist and have values; those of JSONL are not checked.
        optional: further columns whose names may differ in case.
        extra_values: values beyond the header are those of the last column, and belong to `EXTRA_VALUES`.

    Raises:
        UserError: the table cannot be read, a column is missing, or a row does not fit the header.
    """
    if path.suffix.lower() == ".jsonl":
        yield from _json_lines(path)
    else:
        yield from _csv(path, needed, optional, extra_values)


def values(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, values) of a CSV with commas, the header included."""
    return _parsed(path, files.read_text(path), ",")


def relative_name(name: str, folder: Path, may_leave: bool, place: str) -> str:
    """The name of a file in a table as a path below `folder`, without `.` and doubled slashes.

    Raises:
        UserError: the name is empty, holds a character that no path has, or lies outside of `folder` and `may_leave` is
            not set.
    """
    stripped = name.strip()
    if not stripped or "\0" in stripped or len(stripped) > MAX_NAME:
        raise UserError(f"{place}: {name[:40]!r} is not the name of a file")
    path = PurePosixPath(stripped)
    if path.is_absolute() and path.is_relative_to(folder.absolute()):
        path = path.relative_to(folder.absolute())
    if may_leave:
        return str(path)
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if path.is_absolute() or depth < 0:
            raise UserError(f"{place}: {stripped} lies outside of {folder}; --captions-may-leave allows it")
    return str(path)


def texts(row: Row, columns: Sequence[str], place: str) -> list[str]:
    """The captions of a row, from the first of the columns that has a value: a text, or in JSONL a list of texts.

    Raises:
        UserError: no column has a value, or one is neither a text nor a list of texts.
    """
    value = next((row[name] for name in columns if row.get(name)), None)
    entries = value if isinstance(value, list) else [value]
    captions = [entry.strip() for entry in entries if isinstance(entry, str)]
    if len(captions) < len(entries) or not all(captions):
        raise UserError(f"{place}: needs {' or '.join(columns)}, a text (in JSONL also a list of texts)")
    return captions


def _csv(
    path: Path, needed: Sequence[str], optional: Sequence[str], extra_values: bool
) -> Iterator[tuple[int, Row]]:
    text = files.read_text(path)
    separator = _separator(text, needed)
    rows = _parsed(path, text, separator)
    line, header = next(rows, (0, []))
    names = [_column(name, (*needed, *optional)) for name in header]
    for column in needed:
        if names.count(column) != 1:
            problem = f"has no column {column!r}" if column not in names else f"has two columns {column!r}"
            raise UserError(f"{path}: {problem}; its first line must name {', '.join(needed)}")
    for line, row in rows:
        if len(row) > len(names) and not extra_values:
            raise UserError(
                f"{path}, line {line}: {len(row)} values, but the header names {len(names)} columns; "
                f"a value with {separator!r} in it must stand in double quotes"
            )
        fields: Row = dict(zip(names, row, strict=False))
        if any(column not in fields for column in needed):
            raise UserError(f"{path}, line {line}: the row ends too early")
        yield line, fields | {EXTRA_VALUES: row[len(names) :]}


def _parsed(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, values) of the rows that are not empty."""
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    try:
        for row in reader:
            if any(value.strip() for value in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def _separator(text: str, needed: Sequence[str]) -> str:
    """The separator with which the first line names the needed columns; a comma if none does."""
    header = text.lstrip("\r\n").partition("\n")[0]
    for separator in SEPARATORS:
        names = [_column(name.strip().strip('"'), needed) for name in header.split(separator)]
        if all(column in names for column in needed):
            return separator
    return ","


def _column(name: str, columns: Sequence[str]) -> str:
    """The column that a header's name means: one of `columns` that differs in case or blanks only, or the name."""
    if name in columns:
        return name
    plain = name.strip().casefold()
    return next((column for column in columns if column.casefold() == plain), name.strip())


def _json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    for line, text in enumerate(files.split_lines(files.read_text(path)), start=1):
        if not text.strip():
            continue
        row = files.parse_json(text, f"{path}, line {line}")
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {line}: not a JSON object")
        yield line, row
