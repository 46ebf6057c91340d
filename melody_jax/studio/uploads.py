"""Decodes sounds of strangers in a process of their own, with limits on bytes, seconds, time and memory.

    decoder = UploadDecoder(system.audio_format, project.uploads_folder)
    sound = decoder.decode(file, "humming.wav")     # a file object; the name appears in errors only
    path = project.add_source(sound.samples, system.sample_rate)

The bytes are counted while they are copied into a private folder, which is removed after. The worker
(upload_worker.py) limits itself before it reads them, and ends by itself even if this process is killed. Whatever
happens to it, it is waited for.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32

from melody_jax import files
from melody_jax.audio_format import HIGHEST_RATE, LOWEST_RATE, AudioFormat
from melody_jax.errors import UserError
from melody_jax.options import check_fields, option
from melody_jax.sampling.settings import MAX_SECONDS, shorten
from melody_jax.studio import upload_worker

CHUNK = 1 << 20
"""Bytes that are copied at once."""
LATE = tuple(-getattr(signal, name) for name in ("SIGALRM", "SIGXCPU") if hasattr(signal, name))
"""Exit statuses of a worker whose time was over."""
VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT")
"""Variables of the environment that the worker gets."""
PACKAGES = Path(__file__).parents[2]
"""The folder that the worker imports this package from."""


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """What an upload may be, and what decoding it may take."""

    max_bytes: int = option(64 << 20, least=1, most=files.MAX_BYTES)
    """Size of the file."""
    min_seconds: float = option(1.0, least=0, most=MAX_SECONDS)
    """Length of the sound; systems need a second."""
    max_seconds: float = option(float(MAX_SECONDS), above=0, most=MAX_SECONDS)
    """Length of the sound."""
    lowest_rate: int = option(LOWEST_RATE, least=1_000, most=768_000)
    """Sample rate of the file, Hz."""
    highest_rate: int = option(HIGHEST_RATE, least=1_000, most=768_000)
    """Sample rate of the file, Hz."""
    decode_seconds: int = option(30, least=1, most=3600)
    """Time of the worker, seconds."""
    memory_bytes: int = option(2 << 30, least=512 << 20, most=1 << 40)
    """Address space of the worker, including about 0.4 GB of libraries. Systems without `resource` have no limit."""
    workers: int = option(2, least=1, most=64)
    """Workers at the same time."""

    def __post_init__(self) -> None:
        check_fields(self)


class UploadBusy(UserError):
    """All workers are decoding; retry in `retry_seconds`."""

    retry_seconds = 5


@dataclass(frozen=True, eq=False)
class DecodedSound:
    """A sound in the format that was asked for."""

    samples: Float32[np.ndarray, " T *C"]
    """(T,) or (T, 2), finite."""
    notes: tuple[str, ...]
    """What its owner may not expect, such as channels that cancel each other."""


class UploadDecoder:
    """Decodes uploads to one format, in at most `limits.workers` processes; any thread may call it.

    folder: where uploads lie while they are decoded.
    """

    def __init__(self, audio_format: AudioFormat, folder: Path, limits: UploadLimits | None = None) -> None:
        self.audio_format = audio_format
        self.folder = folder
        self.limits = UploadLimits() if limits is None else limits
        self._places = threading.BoundedSemaphore(self.limits.workers)

    def decode(self, file: BinaryIO, name: str = "the sound") -> DecodedSound:
        """The samples of a sound file, read from the file object to its end.

        name: what errors call it; it is never a path.

        Raises:
            UserError: one line, for a file that is too large, no sound, damaged, or outside of the limits.
            UploadBusy: as many workers as may run are decoding.
        """
        with self._place(), tempfile.TemporaryDirectory(dir=self.folder) as folder:
            self._copy(file, Path(folder) / "sound", name)
            notes = self._run(Path(folder), name)
            return DecodedSound(self._read(Path(folder) / "samples", name), notes)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(timeout=1.0):
            raise UploadBusy(
                f"{self.limits.workers} sounds are being decoded; try again in {UploadBusy.retry_seconds} s"
            )
        try:
            yield
        finally:
            self._places.release()

    def _copy(self, file: BinaryIO, path: Path, name: str) -> None:
        """Copies the bytes. Raises `UserError` as soon as there are too many."""
        size = 0
        try:
            with open(path, "xb") as copy:
                while data := file.read(CHUNK):
                    size += len(data)
                    if size > self.limits.max_bytes:
                        raise UserError(
                            f"{shorten(name)}: more than {self.limits.max_bytes:,} bytes; upload a smaller file"
                        )
                    copy.write(data)
        except OSError as error:
            raise UserError(f"{shorten(name)}: cannot be stored ({error.strerror})") from error

    def _run(self, folder: Path, name: str) -> tuple[str, ...]:
        """Runs the worker; returns its notes. Raises `UserError` for what it reports, and for how it ended."""
        limits = asdict(self.limits) | asdict(self.audio_format) | {"folder": str(folder)}
        try:
            ended = subprocess.run(
                [sys.executable, "-P", "-m", upload_worker.__name__],
                input=json.dumps(limits).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                cwd=folder,
                timeout=self.limits.decode_seconds + 2.0,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise self._late(name) from None
        if ended.returncode in LATE:
            raise self._late(name)
        report = _report(ended.stdout)
        if ended.returncode or report is None:
            raise UserError(f"{shorten(name)}: cannot be decoded (its decoder ended with {ended.returncode})")
        if report["error"]:
            raise UserError(_renamed(report["error"], folder, name))
        return tuple(_renamed(note, folder, name) for note in report["notes"])

    def _late(self, name: str) -> UserError:
        return UserError(f"{shorten(name)}: takes more than {self.limits.decode_seconds} s to decode; cut it")

    def _read(self, path: Path, name: str) -> Float32[np.ndarray, " T *C"]:
        """The samples that the worker wrote. Raises `UserError` for more than the limits allow."""
        channels = self.audio_format.channels
        most = math.ceil((self.limits.max_seconds + 1) * self.audio_format.sample_rate) * channels * 4
        samples = np.frombuffer(files.read_bytes(path, most), "<f4").astype(np.float32)
        if not len(samples) or len(samples) % channels or not np.isfinite(samples).all():
            raise UserError(f"{shorten(name)}: not a sound that can be read")
        return samples if channels == 1 else samples.reshape(-1, channels)


def _environment() -> dict[str, str]:
    """The variables that the worker needs; the others may hold secrets."""
    chosen = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    paths = [str(PACKAGES), os.environ.get("PYTHONPATH", "")]
    return chosen | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def _renamed(message: str, folder: Path, name: str) -> str:
    """A message of the worker with the sound's name in place of its path, which libsndfile writes in bytes."""
    path = folder / "sound"
    return message.replace(repr(os.fsencode(path)), shorten(name)).replace(str(path), shorten(name))


def _report(output: bytes) -> dict[str, Any] | None:
    """What the worker printed, {"error": text, "notes": texts}; None for anything else."""
    try:
        value = json.loads(output)
        is_report = isinstance(value["error"], str) and all(isinstance(note, str) for note in value["notes"])
    except (ValueError, TypeError, KeyError):
        return None
    return value if is_report else None
