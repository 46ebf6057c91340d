"""Uploads of the studio: decoded in a process of their own, within limits, with one-line errors and nothing left."""

import io
import os
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import soundfile

from melody_jax import audio
from melody_jax.audio_format import AudioFormat
from melody_jax.errors import UserError
from melody_jax.studio import uploads
from melody_jax.studio.uploads import DecodedSound, UploadBusy, UploadDecoder, UploadLimits

RATE = 24_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "uploads"
    path.mkdir()
    return path


def sound(seconds: float = 1.5, rate: int = RATE, channels: int = 1, suffix: str = "WAV") -> bytes:
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.5, 0.5, (round(seconds * rate), channels)).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=suffix)
    return buffer.getvalue()


def decode(folder: Path, data: bytes, name: str = "mine.wav", **limits: float) -> DecodedSound:
    decoder = UploadDecoder(AudioFormat(), folder, UploadLimits(**limits))  # type: ignore[arg-type]
    return decoder.decode(io.BytesIO(data), name)


def assert_nothing_left(folder: Path) -> None:
    """No file of the upload, and no child of this process, running or dead."""
    assert list(folder.iterdir()) == []
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("suffix", ["WAV", "FLAC", "OGG", "MP3"])
def test_formats_become_what_the_system_takes(folder: Path, tmp_path: Path, suffix: str) -> None:
    data = sound(rate=44_100, channels=2, suffix=suffix)
    decoded = decode(folder, data)
    path = tmp_path / f"mine.{suffix.lower()}"
    path.write_bytes(data)
    np.testing.assert_array_equal(decoded.samples, audio.read(path))
    assert decoded.samples.dtype == np.float32
    assert decoded.notes == ()
    assert_nothing_left(folder)


def test_stereo_at_another_rate(folder: Path) -> None:
    stereo = AudioFormat(sample_rate=44_100, channels=2)
    decoded = UploadDecoder(stereo, folder).decode(io.BytesIO(sound()))
    assert decoded.samples.shape == (round(1.5 * 44_100), 2)


def test_channels_that_cancel_give_a_note(folder: Path) -> None:
    left = np.random.default_rng(0).uniform(-0.5, 0.5, RATE * 2).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([left, -left], axis=1), RATE, format="WAV")
    (note,) = decode(folder, buffer.getvalue()).notes
    assert note == "'mine.wav': its channels cancel each other; one of them is used"


def header(seconds: float, channels: int = 1, rate: int = RATE) -> bytes:
    """A WAV whose header declares more than follows."""
    size = round(seconds * rate) * channels * 2
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * channels * 2, channels * 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", size + 36)
        + b"WAVE"
        + form
        + b"data"
        + struct.pack("<I", size)
        + b"\0" * 64
    )


HOSTILE: dict[str, tuple[bytes, dict[str, float], str]] = {
    "empty": (b"", {}, "the file is empty"),
    "text": (b"<script>alert(1)</script>" * 9, {}, "not an audio file that can be read"),
    "cut short": (sound()[:5_000], {}, "cut short"),
    "a header alone": (header(3600 * 10), {}, "cut short"),
    "zip": (b"PK\3\4" + b"\0" * 1000, {}, "not an audio file that can be read"),
    "pickle": (
        b"\x80\4\x95" + b"cos\nsystem\n(S'touch /'\ntR." * 9,
        {},
        "not an audio file that can be read",
    ),
    "too many bytes": (sound(), {"max_bytes": 1000}, "more than 1,000 bytes; upload a smaller file"),
    "too long": (sound(3), {"max_seconds": 2}, r"lasts 3\.00 s; it must be 1 to 2 s long"),
    "too short": (sound(0.5), {}, r"lasts 0\.50 s; it must be 1 to 600 s long"),
    "slow": (sound(3, 4_000), {}, "a sample rate of 4000 Hz; it must be 8000 to 192000 Hz"),
    "fast": (sound(1, 200_000), {}, "a sample rate of 200000 Hz; it must be 8000 to 192000 Hz"),
    "many channels": (sound(1, channels=65), {}, "65 channels; at most 64 are read"),
    "damaged": (sound(suffix="FLAC")[:9_000] + b"\xff" * 30_000, {}, "mine.wav"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_give_one_line(folder: Path, case: str) -> None:
    data, limits, message = HOSTILE[case]
    with pytest.raises(UserError, match=message) as refused:
        decode(folder, data, **limits)
    text = str(refused.value)
    assert "\n" not in text
    assert "'mine.wav'" in text
    assert str(folder) not in text
    assert_nothing_left(folder)


def test_samples_that_are_no_audio(folder: Path) -> None:
    for value, message in ((np.nan, "not finite"), (1e6, "samples of up to 1e")):
        buffer = io.BytesIO()
        soundfile.write(buffer, np.full(RATE * 2, value, np.float32), RATE, format="WAV", subtype="FLOAT")
        with pytest.raises(UserError, match=message):
            decode(folder, buffer.getvalue())


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\0b\nc", "x" * 5000, "<b>.wav", ""])
def test_a_name_is_no_path(folder: Path, name: str) -> None:
    with pytest.raises(UserError) as refused:
        decode(folder, b"no sound", name)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert len(decode(folder, sound(), name).samples) == round(1.5 * RATE)
    assert_nothing_left(folder)


def test_memory_is_limited(folder: Path) -> None:
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros((200 * 48_000, 8), np.int16), 48_000, format="FLAC")
    assert len(silence.getvalue()) < 1 << 20
    with pytest.raises(UserError, match=r"too long for the memory|too much memory"):
        decode(folder, silence.getvalue(), memory_bytes=512 << 20)
    assert_nothing_left(folder)


ENDINGS: dict[str, tuple[str, str]] = {
    "hangs": ("import time; time.sleep(60)", "takes more than 1 s to decode; cut it"),
    "hangs and ignores its alarm": (
        "import signal, time; signal.signal(signal.SIGALRM, signal.SIG_IGN); time.sleep(60)",
        "takes more than 1 s to decode; cut it",
    ),
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its decoder ended with -11"),
    "fails": ("raise RuntimeError", "its decoder ended with 1"),
    "says nothing": ("pass", "its decoder ended with 0"),
    "says nonsense": ("print([1, 2])", "its decoder ended with 0"),
    "writes nothing": ("""print('{"error": "", "notes": []}')""", "cannot be read"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_worker_is_waited_for_however_it_ends(
    folder: Path, ending: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, message = ENDINGS[ending]
    script = tmp_path / "hostile_worker.py"
    alarm = "import signal; signal.alarm(1)\n"
    script.write_text(alarm + code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(uploads.upload_worker, "__name__", "hostile_worker")
    with pytest.raises(UserError, match=message):
        decode(folder, sound(), decode_seconds=1)
    assert_nothing_left(folder)


def test_secrets_of_the_environment_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    seen: list[dict[str, str]] = []
    plain = subprocess.run

    def run(*arguments: object, env: dict[str, str], **options: object) -> object:
        seen.append(env)
        return plain(*arguments, env=env, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", run)
    decode(folder, sound())
    assert "HF_TOKEN" not in seen[0]


class Slow(io.BytesIO):
    """An upload that arrives after a signal."""

    def __init__(self, data: bytes, begun: Callable[[], object], arrives: threading.Event) -> None:
        super().__init__(data)
        self.begun = begun
        self.arrives = arrives

    def read(self, size: int | None = -1, /) -> bytes:
        self.begun()
        self.arrives.wait(60)
        return super().read(size)


def test_workers_are_few(folder: Path) -> None:
    decoder = UploadDecoder(AudioFormat(), folder, UploadLimits(workers=1))
    begun, arrives = threading.Event(), threading.Event()
    results: list[DecodedSound] = []
    slow: BinaryIO = Slow(sound(), begun.set, arrives)
    thread = threading.Thread(target=lambda: results.append(decoder.decode(slow)))
    thread.start()
    assert begun.wait(60)
    with pytest.raises(UploadBusy, match="1 sounds are being decoded; try again in 5 s"):
        decoder.decode(io.BytesIO(sound()))
    arrives.set()
    thread.join(60)
    assert len(results) == 1
    assert len(decoder.decode(io.BytesIO(sound())).samples)


@pytest.mark.parametrize(("name", "value"), [("max_bytes", 0), ("decode_seconds", 0), ("memory_bytes", 1)])
def test_limits_have_ranges(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}"):
        UploadLimits(**{name: value})
