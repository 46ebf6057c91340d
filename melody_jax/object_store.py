"""Object stores: folders in buckets, gs:// and s3://, through fsspec (extra `buckets`).

An object appears once it is complete. There are no renames, no appends and no locks between machines, so that files are
made and read on this machine, and copied: `local_copy` brings what is read, `mirror.py` uploads what is written.
Credentials and endpoints are those of gcsfs and s3fs.
"""

import contextlib
import hashlib
import importlib
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from melody_jax import files
from melody_jax.errors import UserError, first_line

LIBRARIES = {"gs": "gcsfs", "s3": "s3fs", "memory": "fsspec.implementations.memory"}
"""Scheme -> module of its file system. Objects of memory:// last as long as the process, for tests."""
REMOTE = re.compile(rf"({'|'.join(LIBRARIES)}):/+(.*)")
"""A folder of a bucket; `pathlib` leaves one slash of two."""
TRANSFERS = 8
"""Objects that are copied at a time."""
CACHE_VARIABLE = "MELODY_BUCKET_CACHE"


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return REMOTE.fullmatch(os.fspath(path)) is not None


def display(path: str | os.PathLike) -> str:
    """A path as its user wrote it: `pathlib` takes a slash from a URL."""
    match = REMOTE.fullmatch(os.fspath(path))
    return os.fspath(path) if match is None else f"{match[1]}://{match[2]}"


class RemoteFolder:
    """A folder of a bucket. Names of objects are relative to it.

    Raises:
        ModuleNotFoundError: the extra `buckets` is not installed.
        UserError: the path names no bucket. All methods raise it for whatever a store refuses.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        match = REMOTE.fullmatch(os.fspath(path))
        if match is None or not match[2].strip("/"):
            raise UserError(
                f"{path}: not a folder of a bucket, such as gs://bucket/folder or s3://bucket/folder"
            )
        library = LIBRARIES[match[1]]
        importlib.import_module(library)
        logging.getLogger(library).setLevel(logging.CRITICAL)  # it logs what it raises, with a trace
        import fsspec

        self.scheme = match[1]
        self.url = f"{match[1]}://{match[2].strip('/')}"
        self._store = fsspec.filesystem(self.scheme, use_listings_cache=False)
        self._root: str = self._store._strip_protocol(self.url)

    def __truediv__(self, name: str) -> "RemoteFolder":
        return RemoteFolder(f"{self.url}/{name}")

    def sizes(self) -> dict[str, int]:
        """Name -> bytes of all objects below the folder; empty if there are none."""
        with self._reported():
            listed = self._store.find(self._root, detail=True)
        sizes = {
            path[len(self._root) + 1 :]: info["size"]
            for path, info in listed.items()
            if info["type"] == "file"
        }
        return {name: size for name, size in sizes.items() if name and not name.endswith("/")}

    def has(self, name: str) -> bool:
        """Whether there is an object of this name."""
        with self._reported(name):
            return self._store.isfile(self._path(name))

    def read(self, name: str, max_bytes: int = files.MAX_BYTES) -> bytes:
        """The content of an object of at most `max_bytes`."""
        with self._reported(name):
            size = self._store.info(self._path(name))["size"]
            if size > max_bytes:
                raise UserError(f"{self.url}/{name}: {size} bytes, at most {max_bytes} are read")
            return self._store.cat_file(self._path(name))

    def check_writable(self) -> None:
        """Writes and removes an empty object, so that a missing bucket or right is noticed before long work."""
        name = f".write-test-{secrets.token_hex(8)}"  # of this process alone
        with self._reported():
            self._store.pipe_file(self._path(name), b"")
            self._store.rm_file(self._path(name))

    def download(self, sizes: Mapping[str, int], folder: Path) -> None:
        """Copies objects, name -> bytes, to the same names below a local folder; each file appears when complete."""

        def copy(name: str) -> int:
            if any(part in ("", ".", "..") for part in name.split("/")):
                raise UserError(f"{self.url}/{name}: not a name that a folder can have")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
            try:
                with self._reported(name):
                    self._store.get_file(self._path(name), str(temporary))
                if temporary.stat().st_size != sizes[name]:
                    raise UserError(
                        f"{self.url}/{name}: changed while it was read; run the same command again"
                    )
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            return sizes[name]

        with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, desc=self.url, disable=None) as bar:
            for size in _concurrently(copy, sizes):
                bar.update(size)

    def upload(self, folder: Path, names: Iterable[str]) -> None:
        """Copies files below a local folder to objects of the same names."""

        def copy(name: str) -> None:
            with self._reported(name):
                self._store.put_file(str(folder / name), self._path(name))

        for _ in _concurrently(copy, names):
            pass

    def delete(self, names: Iterable[str]) -> None:
        """Removes objects; those that do not exist do not matter."""

        def remove(name: str) -> None:
            with self._reported(name), contextlib.suppress(FileNotFoundError):
                self._store.rm_file(self._path(name))

        for _ in _concurrently(remove, names):
            pass

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _reported(self, name: str = "") -> Iterator[None]:
        """Turns the errors of the store, of many types, into `UserError`."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            path = f"{self.url}/{name}" if name else self.url
            reason = (
                "does not exist" if isinstance(error, FileNotFoundError) else f"failed ({first_line(error)})"
            )
            raise UserError(f"{path}: {reason}") from error


def read_text(path: str | os.PathLike) -> str:
    """The content of a UTF-8 file on a disk or in a bucket. Raises `UserError` as `files.read_text` does."""
    if not is_remote(path):
        return files.read_text(path)
    folder, _, name = os.fspath(path).rpartition("/")
    try:
        return RemoteFolder(folder).read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error


def _concurrently(action: Callable[[str], Any], names: Iterable[str]) -> Iterator[Any]:
    """Results of an action, in order. The first error ends what has not begun."""
    pool = ThreadPoolExecutor(TRANSFERS)
    try:
        yield from pool.map(action, names)
    finally:
        pool.shutdown(cancel_futures=True)


def cache_folder(kind: str, key: str) -> Path:
    """The folder on this machine for copies of a part of a bucket; it is made.

    It lies in `$MELODY_BUCKET_CACHE`, or else in `melody_jax/buckets` in $XDG_CACHE_HOME or ~/.cache.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = Path(os.environ.get(CACHE_VARIABLE) or Path(cache) / "melody_jax" / "buckets")
    return files.make_folder(home / kind / hashlib.sha256(key.encode()).hexdigest()[:24])


def local_copy(
    remote: RemoteFolder, index: str, listed: Callable[[Path], Mapping[str, tuple[int, str]]]
) -> Path:
    """A local folder with objects of a remote one, copied once per machine.

    Args:
        remote: the folder.
        index: the object that says what there is; another content of it gives another copy.
        listed: the objects, name -> (bytes, sha256), from the local folder in which there is the index only.

    Raises:
        UserError: an object is missing, cannot be read, or has another size or hash.
    """
    content = remote.read(index)
    folder = cache_folder("copies", f"{remote.url} {hashlib.sha256(content).hexdigest()}")
    with files.claim_folder(folder, ".lock", wait=True):
        files.write_bytes(folder / index, content)
        objects = listed(folder)
        missing = {
            name: size
            for name, (size, _) in objects.items()
            if not (folder / name).is_file() or (folder / name).stat().st_size != size
        }
        remote.download(missing, folder)
        for name in missing:
            if files.file_hash(folder / name) != objects[name][1]:
                (folder / name).unlink()
                raise UserError(
                    f"{remote.url}/{name}: its sha256 is not that in {index}: the object is damaged"
                )
    return folder
