"""Files and folders: written whole or not at all, read only where they are regular and of bounded size, locked.

Everything that the package keeps is written by `replace_file`, and every file of a user that is read as a whole
by `read_bytes`.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import IO, Any

from melody_jax.errors import UserError

MAX_NAME = 200
"""Bytes of a file's name that its temporary file repeats: most file systems take 255 in all."""
LONGEST_NAME = 255
"""Bytes of the longest file name that common file systems take."""
MAX_BYTES = 1 << 30
"""Size of the largest file that is read as a whole."""
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@contextlib.contextmanager
def replace_file(path: str | os.PathLike, sync: bool = False) -> Iterator[BufferedWriter]:
    """Yields a binary file that takes the place of `path` when the context ends without an error.

    The temporary file `.<name>.<token>.part` lies beside it and is removed after an error. A symbolic link stays,
    and the file that it points to is replaced. The umask decides who may read the file.

    sync: the content is on the disk before the name is, even if the machine loses power.

    Raises:
        UserError: the folder is missing or cannot be written, the file is read-only or not a regular file, or the
            disk is full.
    """
    refuse_url(path)
    path = Path(path)
    temporary = None
    try:
        target = check_replaceable(path)
        temporary = _temporary(target)
        with open(temporary, "xb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_replaceable(path: str | os.PathLike) -> Path:
    """The file that `replace_file` would write: `path`, or what it links to. Call it before long work, to fail early.

    Raises:
        UserError: the folder is missing or cannot be written, the name is too long, or the file is read-only or not a
            regular file.
    """
    path = Path(path)
    check_name(path)
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        if not target.parent.is_dir():
            raise UserError(f"{path}: the folder {target.parent} does not exist")
        _check_replaceable(path, target)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    if not _is_writable(target.parent):
        raise UserError(f"{path}: the folder {target.parent} cannot be written")
    return target


def _check_replaceable(path: Path, target: Path) -> None:
    """Raises `UserError` unless `target` is missing, or a regular file that may be written."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: not a regular file")
    if not mode & 0o222 or not os.access(target, os.W_OK):
        raise UserError(f"{path}: the file is read-only")


def write_bytes(path: str | os.PathLike, data: bytes, sync: bool = False) -> None:
    """Writes a file that appears only when it is whole. Raises `UserError` as `replace_file` does."""
    with replace_file(path, sync) as file:
        file.write(data)


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 1) -> None:
    """Writes JSON and a line feed. Raises `UserError` as `replace_file` does."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))  # lone surrogates: paths that are not UTF-8


def refuse_url(path: str | os.PathLike) -> None:
    """Raises `UserError` for a URL, which would otherwise name a local folder such as `gs:`."""
    if URL.match(os.fspath(path)):
        raise UserError(
            f"{path}: a URL; this must be on a disk or a mounted bucket (docs/scale.md: where gs:// and s3:// work)"
        )


def make_folder(path: str | os.PathLike) -> Path:
    """Makes a folder, and those above it, unless it is there. Raises `UserError` if it cannot be made."""
    refuse_url(path)
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        obstacle = next((part for part in (path, *path.parents) if part.exists() and not part.is_dir()), path)
        raise UserError(f"{path}: {obstacle} is a file, it must be a folder") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: the folder cannot be made ({reason})") from error
    return path


def check_new(path: str | os.PathLike) -> None:
    """Raises `UserError` unless `path` can become a new file or folder. Call it before long work, to fail early."""
    if os.path.lexists(path):
        raise UserError(f"{path} exists; give a new name")
    check_folder(path)


def check_folder(path: str | os.PathLike) -> None:
    """Raises `UserError` unless `path` is a folder that can be written, or can be made. Call it before long work."""
    path = Path(path)
    check_name(path)
    above = path
    while not os.path.lexists(above) and above != above.parent:
        above = above.parent
    if not os.path.isdir(above):
        raise UserError(f"{path}: {above} is not a folder")
    if not _is_writable(above):
        raise UserError(f"{path}: the folder {above} cannot be written")


def _is_writable(folder: Path) -> bool:
    """Whether this process may make files in a folder."""
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def check_name(path: str | os.PathLike) -> None:
    """Raises `UserError` for a name that is longer than file systems take, or has characters that they do not."""
    path = Path(path)
    try:
        size = len(os.fsencode(path.name))
    except UnicodeEncodeError as error:
        raise UserError(f"{path!r}: not a valid file name ({error.reason})") from None
    if size > LONGEST_NAME:
        raise UserError(f"{path}: a name of {size} bytes; at most {LONGEST_NAME} are possible")
    if "\0" in str(path):
        raise UserError(f"{path!r}: not a valid file name (it holds a zero byte)")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder that becomes `path` when the context ends without an error, and is removed otherwise.

    Raises:
        UserError: `path` exists, cannot be made, or the disk is full.
    """
    path = Path(path)
    check_new(path)
    make_folder(path.parent)
    partial = _temporary(path)
    try:
        partial.mkdir()
        yield partial
        partial.rename(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A new name beside `path`, for what is not finished."""
    name = os.fsdecode(os.fsencode(path.name)[:MAX_NAME])
    return path.with_name(f".{name}.{secrets.token_hex(4)}.part")


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Removes the temporary files that killed processes left in a folder. No other process may be writing there."""
    for path in Path(folder).glob(".*.part"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def open_regular(path: str | os.PathLike, max_bytes: int | None = None) -> Iterator[BufferedReader]:
    """Opens a regular file to read. Whatever else the name stands for, such as a device, is opened but not read.

    Opening does not wait for the other end of a pipe.

    Raises:
        UserError: the file is missing, not regular, larger than `max_bytes`, or cannot be read.
    """
    refuse_url(path)
    path = Path(path)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise UserError(f"{path}: {'is a folder' if stat.S_ISDIR(status.st_mode) else 'not a regular file'}")
    with os.fdopen(handle, "rb") as file:
        if max_bytes is not None and status.st_size > max_bytes:
            raise UserError(f"{path}: {status.st_size} bytes, at most {max_bytes} are read")
        yield file


def read_bytes(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a regular file. Raises `UserError` as `open_regular` does."""
    with open_regular(path, max_bytes) as file:
        try:
            return file.read()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_text(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> str:
    """The content of a UTF-8 file, with or without a byte order mark. Raises `UserError` for other bytes."""
    data = read_bytes(path, max_bytes)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error


def read_json(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON file. Raises `UserError` for a file that cannot be read or is not JSON."""
    return parse_json(read_text(path, max_bytes), str(path))


def parse_json(text: str, place: str) -> Any:
    """The value of JSON text; `place` names it in the error. Raises `UserError` for text that is not JSON.

    Numbers of more digits than Python converts, and nesting deeper than its stack, are not JSON here.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{place}: not JSON (nested too deeply)") from None
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({error})") from error


def split_lines(text: str) -> list[str]:
    """The lines of a JSONL file. Only a line feed ends one: JSON strings may hold other separators, as U+2028."""
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in lines[: -1 if lines[-1] == "" else None]]


def remove_torn_line(file: IO[bytes]) -> None:
    """Removes the incomplete last line that a killed process left in a JSONL file, open to read and write."""
    file.seek(0)
    content = file.read()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        file.truncate(complete)


def file_hash(path: str | os.PathLike) -> str:
    """The sha256 of a file, in hexadecimal. Raises `UserError` as `open_regular` does."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(file: IO[Any], wait: bool = False) -> bool:
    """Locks an open file for this process until it is closed or the process ends, however it ends.

    Returns False if another process holds the lock and `wait` is not set. Systems without `fcntl` lock nothing.

    Raises:
        UserError: the file system cannot lock.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise UserError(f"{file.name}: cannot be locked ({error.strerror})") from error
    return True


@contextlib.contextmanager
def claim_folder(folder: str | os.PathLike, name: str = "lock", wait: bool = False) -> Iterator[bool]:
    """Makes a folder and locks the file `name` in it while the context lasts; the end of the process unlocks it too.

    Yields:
        Whether this process has the lock: False if another process has it and `wait` is not set.

    Raises:
        UserError: the folder cannot be made or written, or its file system cannot lock.
    """
    path = make_folder(folder) / name
    try:
        file = path.open("a")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    with file:
        yield lock(file, wait)
