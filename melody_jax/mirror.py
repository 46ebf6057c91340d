"""A local folder that stands for one in a bucket: a command writes to it, and its files are uploaded when complete."""

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from melody_jax import files
from melody_jax.errors import UserError
from melody_jax.object_store import RemoteFolder, cache_folder, is_remote

SWEEP_SECONDS = 10.0
"""Time between two searches for files to upload."""
CLOCK_STEP = 0.1
"""Seconds by which the time of a file may be behind the clock."""


class Mirror:
    """A local folder whose files are uploaded to a remote one, or just a local folder if `remote` is None.

    Files of the same sweep are uploaded in two groups: those that describe others, JSON, come last. A file that is
    being written, `.<name>.part`, is left alone.

    Attributes:
        folder: the local folder.
        remote: the remote folder, or None.
        sizes: name -> bytes of the objects that were in the remote folder when the mirror was made.
    """

    def __init__(
        self,
        folder: Path,
        remote: RemoteFolder | None = None,
        sizes: Mapping[str, int] | None = None,
        skips: Callable[[str], bool] = lambda name: False,
        discards: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self.folder = folder
        self.remote = remote
        self.sizes = dict(sizes or {})
        self._skips = skips
        self._discards = discards
        self._uploaded = {name: _version(folder / name) for name in self._names()}
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return str(self.folder) if self.remote is None else self.remote.url

    def sweep(self, running: bool = False) -> None:
        """Uploads what is new or changed; deletes local files that need not stay. Raises `UserError`.

        running: others are writing files meanwhile. Those of the last moment wait for the next sweep: if a file is
        uploaded, so are all that were complete before it.
        """
        if self.remote is None:
            return
        with self._lock:
            limit = (time.time() - CLOCK_STEP) * 1e9 if running else float("inf")
            versions = {name: _version(self.folder / name) for name in self._names()}
            changed = {
                name: version
                for name, version in versions.items()
                if version is not None and version[0] < limit and version != self._uploaded.get(name)
            }
            finished = [name for name in versions if self._discards(name) and name not in changed]
            for group in (False, True):
                self._upload([name for name in changed if name.endswith((".json", ".jsonl")) == group])
            for name in finished:  # of an earlier sweep: their writer may still look at new ones
                if versions[name] == self._uploaded.get(name):
                    (self.folder / name).unlink()
            self._uploaded |= changed

    def remove(self, name: str) -> None:
        """Deletes a file here and in the bucket."""
        (self.folder / name).unlink(missing_ok=True)
        if self.remote is not None:
            self.remote.delete([name])

    @contextlib.contextmanager
    def sweeping(self, seconds: float) -> Iterator[None]:
        """Sweeps every so many seconds, 0 for never, and once more at the end. The last sweep alone raises `UserError`.

        After an error in the context, what is complete is uploaded too, if it can be.
        """
        stopping = threading.Event()

        def work() -> None:
            while not stopping.wait(seconds):
                self.try_sweep(running=True)

        thread = threading.Thread(target=work, name="object store", daemon=True)
        if seconds:
            thread.start()
        try:
            yield
        except BaseException:
            self.try_sweep(running=True)
            raise
        finally:
            stopping.set()
            if seconds:
                thread.join()
        self.sweep()
        self._delete_removed()

    def try_sweep(self, running: bool = False) -> None:
        """Sweeps; a failure is a warning, since a later sweep uploads the same files."""
        try:
            self.sweep(running)
        except UserError as error:
            tqdm.write(f"warning: {error}; the upload is tried again later", file=sys.stderr)

    def _delete_removed(self) -> None:
        """Deletes the objects of files that were removed from the local folder."""
        if self.remote is not None:
            removed = self._uploaded.keys() - set(self._names())
            self.remote.delete(name for name in removed if not self._discards(name))

    def _upload(self, names: list[str]) -> None:
        """Uploads copies of the files that other threads may append to, and the others themselves."""
        assert self.remote is not None
        growing = [name for name in names if name.endswith(".jsonl")]
        self.remote.upload(self.folder, (name for name in names if name not in growing))
        with tempfile.TemporaryDirectory() as copies:
            for name in growing:
                target = Path(copies) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / name, target)
            self.remote.upload(Path(copies), growing)

    def _names(self) -> list[str]:
        """Names of the complete files in the local folder."""
        names = (
            os.path.relpath(os.path.join(folder, name), self.folder)
            for folder, _, names in os.walk(self.folder)
            for name in names
            if not (name.startswith(".") and name.endswith(".part"))
        )
        return sorted(name for name in names if not self._skips(name))


def _version(path: Path) -> tuple[int, int] | None:
    """Time of the last change, ns, and bytes of a file; None if it has gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size


@contextlib.contextmanager
def mirrored(
    path: str | os.PathLike,
    fetches: Callable[[str], bool] = lambda name: True,
    skips: Callable[[str], bool] = lambda name: False,
    discards: Callable[[str], bool] = lambda name: False,
    part: str = "",
    seconds: float | None = None,
) -> Iterator[Mirror]:
    """A local folder that stands for `path`: `path` itself, or a copy whose files are uploaded while the context lasts.

    The copy begins with what is in the bucket and is deleted after the last upload. Whatever is removed from it is then
    removed from the bucket.

    Args:
        path: a local or a remote folder.
        fetches: which objects the copy begins with.
        skips: which local files are not uploaded.
        discards: which local files are deleted once they are uploaded; their objects stay.
        part: tells the copies of processes apart that share the remote folder.
        seconds: time between uploads, default `SWEEP_SECONDS`; 0: only at the end and where the caller sweeps.

    Raises:
        UserError: another process of this machine has the same copy, or the store cannot be read or written.
    """
    if not is_remote(path):
        yield Mirror(Path(path))
        return
    remote = RemoteFolder(path)
    home = cache_folder("mirrors", f"{remote.url} {part}")
    with files.claim_folder(home) as is_free:
        if not is_free:
            raise UserError(f"{remote.url}: another process of this machine is writing there")
        folder = home / "files"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        remote.check_writable()
        sizes = remote.sizes()
        remote.download({name: size for name, size in sizes.items() if fetches(name)}, folder)
        mirror = Mirror(folder, remote, sizes, skips, discards)
        with mirror.sweeping(SWEEP_SECONDS if seconds is None else seconds):
            yield mirror
        shutil.rmtree(folder)
