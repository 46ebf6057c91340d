"""Checkpoints in a bucket that the checkpoint library cannot write to itself: all but gs://.

They are written to this machine and then uploaded, one process only. As in the library's checkpoints on gs://, the
object `<step>/commit_success.txt` is written last, and a step without it does not count.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
from etils import epath

from melody_jax.errors import UserError
from melody_jax.object_store import RemoteFolder

MARKER = "commit_success.txt"
NATIVE = ("gs",)
"""Schemes that the checkpoint library writes to; of several processes, each writes its part."""


def library_path(folder: Path, remote: RemoteFolder | None, name: str) -> Path | epath.Path:
    """Where the checkpoint library writes `name` in a run folder, of which `folder` is the local one."""
    if remote is not None and remote.scheme in NATIVE:
        return epath.Path((remote / name).url)
    return folder.absolute() / name


def check_scheme(remote: RemoteFolder) -> None:
    """Raises `UserError` for a bucket that cannot hold the checkpoints of several processes."""
    if remote.scheme not in NATIVE and jax.process_count() > 1:
        raise UserError(
            f"workdir {remote.url}: {jax.process_count()} processes cannot write checkpoints to {remote.scheme}://; "
            "use gs://, or a disk that they share"
        )


def complete_steps(remote: RemoteFolder) -> list[int]:
    """Steps of the complete checkpoints in a folder, in order."""
    parts = [name.split("/") for name in remote.sizes()]
    return sorted(int(part[0]) for part in parts if part[1:] == [MARKER] and part[0].isdecimal())


def check_sole_writer(remote: RemoteFolder, latest: int | None) -> None:
    """Raises `UserError` unless `latest` is the last complete checkpoint in a folder, as this process left it."""
    if jax.process_index() == 0 and (complete_steps(remote) or [None])[-1] != latest:
        raise UserError(
            f"{remote.url}: another training writes checkpoints there; end it, or choose another --workdir"
        )


def download_latest(remote: RemoteFolder, folder: Path) -> int | None:
    """Copies the last complete checkpoint to a local folder, and returns its step; None if there is none."""
    steps = complete_steps(remote)
    if not steps:
        return None
    prefix = f"{steps[-1]}/"
    remote.download({name: size for name, size in remote.sizes().items() if name.startswith(prefix)}, folder)
    return steps[-1]


class CheckpointUploads:
    """Uploads complete checkpoints of a local folder in the background, and deletes those that need not stay.

    Raises:
        UserError: by `wait`, if an upload failed.
    """

    def __init__(self, remote: RemoteFolder, folder: Path, keep_last: int, keep_every: int) -> None:
        self._remote = remote
        self._folder = folder
        self._keep_last = keep_last
        self._keep_every = keep_every
        download_latest(remote, folder)
        self._pool = ThreadPoolExecutor(1)
        self._upload: Future[None] | None = None

    def start(self, step: int, wait_until_written: Callable[[], object]) -> None:
        """Uploads the checkpoint of a step once it is written. The previous upload must have ended."""

        def upload() -> None:
            wait_until_written()
            self._publish(step)

        self._upload = self._pool.submit(upload)

    def wait(self) -> None:
        """Returns once the upload has ended."""
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.result()

    def close(self) -> None:
        """Waits, and ends the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _publish(self, step: int) -> None:
        sizes = self._remote.sizes()
        complete = complete_steps(self._remote)
        unfinished = [name for name in sizes if name.split("/")[0] not in map(str, complete)]
        self._remote.delete(unfinished)  # of a killed process
        step_folder = self._folder / str(step)
        files = [path for path in sorted(step_folder.rglob("*")) if path.is_file()]
        names = [str(path.relative_to(self._folder)) for path in files]
        marker = f"{step}/{MARKER}"
        self._remote.upload(self._folder, (name for name in names if name != marker))
        self._remote.upload(self._folder, [marker])
        remaining = {*[*complete, step][-self._keep_last :]}
        if self._keep_every:
            remaining |= {other for other in complete if other % self._keep_every == 0}
        removed = [str(other) for other in complete if other not in remaining]
        markers = [f"{other}/{MARKER}" for other in removed]
        self._remote.delete(markers)  # first: half a checkpoint must not count
        self._remote.delete(name for name in sizes if name.split("/")[0] in removed)
