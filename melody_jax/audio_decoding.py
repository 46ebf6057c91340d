"""Audio files as blocks of samples: the one place that opens a file of a user to decode it.

libsndfile decodes WAV, FLAC, OGG, MP3, AIFF, Opus and others; AAC, which it lacks, needs PyAV (the extra `aac`).
Headers are compared with the content first (`audio_headers.py`). Whatever is wrong with a file is a `UserError`.
"""

import contextlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile

from melody_jax import audio_headers, files
from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.errors import UserError
from melody_jax.extras import install_hint

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".opus", ".m4a", ".aac")
"""Suffixes of the files that are taken for audio in a folder."""
MAX_CHANNELS = 64
SAMPLE_RATES = (1_000, 768_000)
"""Lowest and highest sample rate, Hz."""
MAX_SAMPLES = 1 << 29
"""Samples over all channels that one block may hold: 6.2 hours of mono at 24 kHz, 1.6 hours of stereo at 48 kHz."""
CHUNK = 1 << 20
"""Samples that are decoded at once, over all channels."""


class Decoder(Protocol):
    """An open audio file."""

    rate: int
    """Sample rate, Hz."""
    channels: int
    """Number of channels."""
    frames: int | None
    """Samples per channel; None: unknown before the file is decoded."""
    slack: int
    """Samples by which a whole file may be shorter than `frames`."""

    def read(self, count: int) -> np.ndarray:
        """Returns the next samples, float32 (at most `count`, channels); none at the end."""
        ...

    def skip(self, count: int) -> None:
        """Leaves out the next samples; to the end if there are fewer."""
        ...


@contextlib.contextmanager
def open_audio(path: str | os.PathLike) -> Iterator[Decoder]:
    """Opens an audio file.

    Raises:
        UserError: the file is missing, not regular, not audio, truncated, or has a sample rate or a number of channels
            that no recording has; also for what decoding raises in the block.
    """
    path = Path(path)
    with files.open_regular(path) as file, _reported(path), contextlib.ExitStack() as stack:
        decoder = _open(file, path, stack)
        low, high = SAMPLE_RATES
        if not low <= decoder.rate <= high:
            raise UserError(f"{path}: a sample rate of {decoder.rate} Hz; it must be {low} to {high} Hz")
        if not 1 <= decoder.channels <= MAX_CHANNELS:
            raise UserError(f"{path}: {decoder.channels} channels; at most {MAX_CHANNELS} are read")
        yield decoder


def read_blocks(
    path: str | os.PathLike, seconds: float, start: float, end: float
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields blocks float32 (T, channels) of a part of a file, and its sample rate; see `audio.stream`."""
    with open_audio(path) as decoder:
        rate = decoder.rate
        first = round(start * rate)
        stop = min(math.inf if decoder.frames is None else decoder.frames, end * rate)
        if first:
            decoder.skip(first)
        size = seconds * rate
        position = first
        pending = None
        while position < stop:
            block = _read_block(decoder, min(size, stop - position), path)
            if len(block) == 0:
                break
            position += len(block)
            if pending is None:
                pending = block
            elif len(block) < size / 2:
                pending = np.concatenate([pending, block])
            else:
                yield pending, rate
                pending = block
        if pending is None:
            raise UserError(f"{path}: the file holds no audio" + (f" after {start:g} s" if start else ""))
        if decoder.frames is not None and position < round(stop) - decoder.slack:
            raise UserError(f"{path}: cut short, {position} of {decoder.frames} samples can be read")
        yield pending, rate


def length(path: str | os.PathLike) -> float:
    """Duration of a file in seconds; a file that does not declare it is decoded."""
    with open_audio(path) as decoder:
        frames = decoder.frames
        if frames is None:
            frames = 0
            while count := len(decoder.read(CHUNK)):
                frames += count
        return frames / decoder.rate


def read_samples(sound: soundfile.SoundFile, count: int) -> np.ndarray:
    """Reads float32 (at most `count`, channels) from an open file, in no more memory than the samples need.

    Raises:
        UserError: the samples of all channels are more than `MAX_SAMPLES`.
    """
    return _read_block(_SoundFileDecoder(sound), count, "FLAC bytes")


def _read_block(decoder: Decoder, count: float, path: str | os.PathLike) -> np.ndarray:
    """The next `count` samples, or those to the end; no more memory is taken than they need."""
    chunk = max(1, CHUNK // decoder.channels)
    longest = MAX_SAMPLES / decoder.channels
    longest *= min(1.0, decoder.rate / SAMPLE_RATE)  # low rates are resampled to more samples
    parts: list[np.ndarray] = []
    size = 0
    while size < count:
        part = decoder.read(round(min(chunk, count - size)))
        if len(part) == 0:
            break
        parts.append(part)
        size += len(part)
        if size > longest:
            raise UserError(
                f"{path}: longer than the {longest:.0f} samples per channel that are decoded at once; cut it into parts"
            )
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros((0, decoder.channels), np.float32)


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turns what decoders raise into `UserError`."""
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path}: too long for the memory of this machine") from error
    except (soundfile.SoundFileError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not an audio file that can be read, or damaged ({error})") from error


def _open(file: BinaryIO, path: Path, stack: contextlib.ExitStack) -> Decoder:
    size = os.fstat(file.fileno()).st_size
    content = audio_headers.inspect(file, size, str(path))
    aac = audio_headers.aac_container(file)
    if aac:
        return _AVDecoder(_open_av(file, path, aac, stack), path)
    sound = stack.enter_context(_open_sound(path, content))
    if sound.format == "MP3":
        layer, content = audio_headers.inspect_mpeg(file, size, str(path))
        if layer != 3:
            return _AVDecoder(_open_av(file, path, "mp3", stack), path)
        if content is not None:
            sound = stack.enter_context(_open_sound(path, content))
    return _SoundFileDecoder(sound)


def _open_sound(path: Path, content: bytes | None) -> soundfile.SoundFile:
    if content is not None:
        return soundfile.SoundFile(io.BytesIO(content))
    name: Any = (
        os.fspath(path) if os.name == "nt" else os.fsencode(path)
    )  # soundfile encodes names of UTF-8 only
    return soundfile.SoundFile(name)


class _SoundFileDecoder:
    """Decodes with libsndfile."""

    slack = 0

    def __init__(self, sound: soundfile.SoundFile) -> None:
        self._sound = sound
        self.rate = sound.samplerate
        self.channels = sound.channels
        self.frames = sound.frames if sound.frames < 1 << 40 else None

    def read(self, count: int) -> np.ndarray:
        return self._sound.read(count, dtype="float32", always_2d=True)

    def skip(self, count: int) -> None:
        self._sound.seek(min(self._sound.tell() + count, self._sound.frames))


def _open_av(file: BinaryIO, path: Path, container: str, stack: contextlib.ExitStack) -> Any:
    """The container, opened by PyAV; `container` is FFmpeg's name, so that it tries no other format."""
    try:
        import av
        from av.error import FFmpegError
    except ModuleNotFoundError:
        kind = "MPEG audio of layer I or II" if container == "mp3" else "AAC audio"
        raise UserError(f"{path}: {kind}; {install_hint('av')}") from None
    file.seek(0)
    try:
        return stack.enter_context(av.open(file, "r", format=container, metadata_errors="replace"))
    except FFmpegError as error:
        raise UserError(
            f"{path}: not an audio file that can be read, or damaged ({error.strerror})"
        ) from error


class _AVDecoder:
    """Decodes the first audio stream of a container with PyAV."""

    slack = 4096

    def __init__(self, container: Any, path: Path) -> None:
        import av
        from av.error import FFmpegError

        if not container.streams.audio:
            raise UserError(f"{path}: holds no audio stream")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise UserError(f"{path}: an audio codec that cannot be decoded")
        self.rate = stream.rate or 0
        self.channels = stream.channels
        self.frames = None
        is_bare = container.format.name in ("aac", "mp3")
        if not is_bare and stream.duration:  # without a container, the length is a guess
            self.frames = round(stream.duration * stream.time_base * self.rate)
        self._path = path
        self._error = FFmpegError
        self._resampler = av.AudioResampler(format="fltp")
        self._frames = container.decode(stream)
        self._pending = np.zeros((0, self.channels), np.float32)

    def read(self, count: int) -> np.ndarray:
        parts = [self._pending]
        size = len(self._pending)
        while size < count and (block := self._decode()) is not None:
            parts.append(block)
            size += len(block)
        samples = np.concatenate(parts)
        self._pending = samples[count:]
        return samples[:count]

    def skip(self, count: int) -> None:
        while count > 0 and (skipped := len(self.read(min(count, CHUNK)))):
            count -= skipped

    def _decode(self) -> np.ndarray | None:
        try:
            frame = next(self._frames, None)
            if frame is None:
                return None
            if (frame.sample_rate, frame.layout.nb_channels) != (self.rate, self.channels):
                raise UserError(f"{self._path}: the sample rate or the channels change within the file")
            blocks = [part.to_ndarray().T for part in self._resampler.resample(frame)]
        except self._error as error:
            raise UserError(f"{self._path}: damaged ({error.strerror})") from error
        return np.concatenate([np.zeros((0, self.channels), np.float32), *blocks])
