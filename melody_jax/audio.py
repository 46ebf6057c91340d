"""Audio files and FLAC bytes. NumPy only (plus soundfile and soxr).

Audio is float32 in [-1, 1]: (T,) if it is mono, (T, C) if it has C channels. By default it is mono at `SAMPLE_RATE` =
24 kHz as in MeLoDy (arXiv 2305.15719, section 5.1). Files and FLAC bytes hold 16-bit samples, scaled by 32768, so
decoding and encoding them again is lossless.
"""

import io
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Float32, Int16

from melody_jax import audio_decoding, files
from melody_jax.audio_format import CHANNELS, SAMPLE_RATE, AudioFormat
from melody_jax.errors import InputWarning, UserError

BLOCK = 1 << 20
"""Samples that `write` converts at once."""
CANCELLED = 0.01
"""Share of the channels' mean energy below which their mean counts as cancelled."""
FULL_SCALE_ERROR = 1e-3
"""Excess over full scale that is not worth a warning, for instance of a resampler."""
LOUDEST_SAMPLE = 100.0
"""Magnitude above which samples are no audio, but for instance integers in floats."""
FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}
"""Suffix of a file that is written -> soundfile format."""
SUFFIXES = audio_decoding.SUFFIXES
"""Suffixes of the files that commands take for audio in a folder."""

Mono = Float32[np.ndarray, " T"]
Audio = Float32[np.ndarray, " T *C"]
AnyAudio = Float[np.ndarray, " T *C"]


def read(path: str | os.PathLike, sample_rate: int = SAMPLE_RATE, channels: int = 1) -> Audio:
    """Reads any format that libsndfile supports, and AAC with PyAV. Returns float32 (T,), or (T, 2) for 2 channels.

    The file is resampled, and its channels are converted (`to_channels`). Channels that cancel each other when they
    are mixed give an `InputWarning`, and one of them. So do more than two channels, which are mixed to one.

    Raises:
        UserError: the file is missing, not regular, not audio, truncated, empty or too long, or holds samples that are
            not finite.
    """
    samples, source_rate = _read_all(path)
    converted, cancels = to_channels(samples, channels)
    _warn_of_mixing(path, samples.shape[1], cancels)
    return resample(converted, source_rate, sample_rate)


def read_as_stored(path: str | os.PathLike) -> tuple[Audio, AudioFormat]:
    """Reads a file at its own sample rate: float32 (T,) or (T, 2), and the format.

    Stereo stays stereo; more channels are mixed to mono, with an `InputWarning`. Raises `UserError` as `read` does.
    """
    samples, sample_rate = _read_all(path)
    channels = 2 if samples.shape[1] == 2 else 1
    converted, cancels = to_channels(samples, channels)
    _warn_of_mixing(path, samples.shape[1], cancels)
    return converted, AudioFormat(sample_rate=sample_rate, channels=channels)


def _warn_of_mixing(path: str | os.PathLike, channels: int, cancels: bool) -> None:
    if cancels:
        problem = "its channels cancel each other; one of them is used"
    elif channels > 2:
        problem = f"its {channels} channels are mixed to one"
    else:
        return
    warnings.warn(f"{path}: {problem}", InputWarning, stacklevel=3)


def _read_all(path: str | os.PathLike) -> tuple[Float32[np.ndarray, "T channels"], int]:
    (samples, sample_rate), *_ = stream(path)
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: contains samples that are not finite (NaN or infinity)")
    return samples, sample_rate


def stream(
    path: str | os.PathLike, seconds: float = math.inf, start: float = 0.0, end: float = math.inf
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields blocks float32 (T, channels) of a file and its sample rate, for files too long for memory.

    Blocks last `seconds`; a remainder of less than half of that is joined to the block before. `start` and `end`, in
    seconds, select a part. A truncated file is detected only after the last block.

    Raises:
        UserError: the file is missing, not regular, not audio, truncated or empty, or ends before `start`.
    """
    yield from audio_decoding.read_blocks(path, seconds, start, end)


def seconds(path: str | os.PathLike) -> float:
    """Duration of an audio file in seconds. Raises `UserError` as `stream` does; the samples are not checked."""
    return audio_decoding.length(path)


def mix(block: Float32[np.ndarray, "T channels"]) -> tuple[Mono, bool]:
    """Mixes (T, channels) to mono by the mean; where the channels cancel each other, the loudest one is used instead.

    Channels cancel if the mean has less than a hundredth of their mean energy: one channel is the other's negative.
    Returns the mono audio and whether the channels cancel.
    """
    mono = block.mean(axis=1, dtype=np.float32)
    if block.shape[1] == 1:
        return mono, False
    energies = np.einsum("tc,tc->c", block, block, dtype=np.float64)
    if not np.dot(mono, mono) < CANCELLED * energies.mean():
        return mono, False
    return np.ascontiguousarray(block[:, energies.argmax()]), True


def to_channels(block: Float32[np.ndarray, "T channels"], channels: int) -> tuple[Audio, bool]:
    """Converts (T, channels) to `channels` channels, 1 or 2; returns (T,) or (T, 2), and whether they cancel (`mix`).

    Stereo stays stereo; anything else is mixed to mono, which stereo has in both channels.
    """
    if channels not in CHANNELS:
        raise UserError(f"channels is {channels}; it must be 1 or 2")
    if channels == block.shape[1] == 2:
        return np.ascontiguousarray(block), False
    mono, cancels = mix(block)
    return (mono if channels == 1 else np.repeat(mono[:, None], 2, axis=1)), cancels


def resample(
    audio: AnyAudio, source_rate: int, sample_rate: int = SAMPLE_RATE
) -> Float32[np.ndarray, " _ *C"]:
    """Resamples (T,) or (T, C) from `source_rate` to `sample_rate` Hz with soxr in high quality. Returns float32."""
    if source_rate <= 0 or sample_rate <= 0:
        raise UserError(f"sample rates must be positive, got {source_rate} and {sample_rate} Hz")
    if source_rate == sample_rate:
        return np.asarray(audio, np.float32)
    return np.asarray(
        soxr.resample(np.asarray(audio, np.float32), source_rate, sample_rate, quality="HQ"), np.float32
    )


def write(
    path: str | os.PathLike, audio: np.ndarray, sample_rate: int = SAMPLE_RATE, sync: bool = False
) -> None:
    """Writes float32 (T,) or (T, C) as a 16-bit .wav or .flac, or as .ogg (Vorbis) or .mp3.

    Samples beyond [-1, 1] are clipped, with an `InputWarning`.

    The write is atomic: a temporary file in the same folder is written and then renamed. `sync` waits until it is on
    the disk.
    Raises `UserError` for audio that is empty, not finite, or of another shape, for an unknown suffix, and for a folder
    that is missing or not writable.
    """
    path = Path(path)
    file_format = check_writable(path)
    audio = _checked(audio, str(path))
    _warn_of_clipping(path, audio)
    data = encode(audio, sample_rate, file_format, str(path))
    with files.replace_file(path, sync) as file:
        file.write(data)


def encode(
    audio: np.ndarray,
    sample_rate: int,
    file_format: str,
    place: str = "audio",
    tags: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes of a file of float32 (T,) or (T, C), as `write` writes it.

    Args:
        audio: the samples; those beyond [-1, 1] are clipped.
        sample_rate: samples per second.
        file_format: one of the values of `FORMATS`.
        place: what errors call the audio.
        tags: texts of the file, such as {"title": ...}: title, artist, comment, date, software and the others of
            soundfile. They change no sample.

    Raises:
        UserError: the audio is empty, not finite or of another shape, or the format cannot hold it.
    """
    audio = _checked(audio, place)
    buffer = io.BytesIO()  # libsndfile ignores some errors of a disk
    try:
        with soundfile.SoundFile(buffer, "w", sample_rate, channel_count(audio), format=file_format) as sound:
            for name, text in (tags or {}).items():
                setattr(sound, name, text.replace("\0", ""))
            for first in range(0, len(audio), BLOCK):  # bounds the memory for conversion
                samples = to_int16(audio[first : first + BLOCK], place)
                if file_format == "MP3":  # libsndfile 1.2.2 mixes the channels of 16-bit samples
                    samples = samples / np.float32(32768)
                sound.write(samples)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise UserError(f"{place}: cannot be written ({error})") from error
    return buffer.getvalue()


def _warn_of_clipping(path: Path, audio: np.ndarray) -> None:
    peak = max(float(audio.max()), -float(audio.min()))
    if peak > 1 + FULL_SCALE_ERROR:
        warnings.warn(
            f"{path}: its peak is {peak:.3g}; what is beyond 1 is clipped", InputWarning, stacklevel=3
        )


def check_writable(path: str | os.PathLike) -> str:
    """The soundfile format that `write` would use for `path`. Call it before long work, to fail early.

    Raises `UserError` for an unknown suffix and for a folder that is missing or not writable.
    """
    wanted = file_format(path)
    files.check_replaceable(path)
    return wanted


def file_format(path: str | os.PathLike) -> str:
    """The soundfile format of a name. Raises `UserError` for an unknown suffix."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: the name must end in one of {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def encode_flac(audio: np.ndarray, sample_rate: int = SAMPLE_RATE) -> bytes:
    """Encodes float32 (T,) or (T, C) as 16-bit FLAC; the same audio always gives the same bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, to_int16(audio, "FLAC encoder"), sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(data: bytes, start: int = 0, frames: int = -1) -> Audio:
    """Decodes samples `start` to `start + frames` (to the end for -1) of FLAC bytes. Returns float32 (T,) or (T, 2).

    Only that part is decoded. Raises `UserError` for damaged bytes and for a part beyond the end.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            count = file.frames - start if frames < 0 else frames
            if start < 0 or start + count > file.frames:
                raise UserError(
                    f"FLAC bytes hold {file.frames} samples: {start} to {start + count} is out of range"
                )
            if file.channels not in CHANNELS:
                raise UserError(f"FLAC bytes hold {file.channels} channels; it must be 1 or 2")
            file.seek(start)
            samples = audio_decoding.read_samples(file, count)
            samples = samples[:, 0] if file.channels == 1 else samples
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        raise UserError(f"FLAC bytes cannot be decoded ({error})") from error
    if len(samples) != count:
        raise UserError(f"FLAC bytes are cut short: {len(samples)} of {count} samples could be decoded")
    return samples


def flac_info(data: bytes) -> tuple[int, AudioFormat]:
    """The number of samples in FLAC bytes (of each channel) and their format, from the header alone."""
    try:
        info = soundfile.info(io.BytesIO(data))
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        raise UserError(f"FLAC bytes cannot be decoded ({error})") from error
    return info.frames, AudioFormat(sample_rate=info.samplerate, channels=info.channels)


def decode_flac_as(data: bytes, target: AudioFormat) -> Audio:
    """Decodes FLAC bytes and converts them to a format. Raises `UserError` for damaged bytes."""
    return convert(decode_flac(data), flac_info(data)[1], target)


def per_sample(gain: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """A gain (T,) in a shape that multiplies all channels of audio (T,) or (T, C)."""
    return gain.reshape(-1, *[1] * (audio.ndim - 1))


def convert(audio: AnyAudio, source: AudioFormat, target: AudioFormat) -> Float32[np.ndarray, " _ ..."]:
    """Audio of one format in another; the same audio if they are equal."""
    if source.channels != target.channels:
        audio = to_channels(
            np.asarray(audio, np.float32).reshape(len(audio), source.channels), target.channels
        )[0]
    return resample(audio, source.sample_rate, target.sample_rate)


def channel_count(audio: np.ndarray) -> int:
    """The number of channels of (T,) or (T, C)."""
    return 1 if audio.ndim == 1 else audio.shape[1]


def to_int16(audio: np.ndarray, name: str) -> Int16[np.ndarray, " T *C"]:
    """Float (T,) or (T, C) as int16, clipped at full scale. Raises `UserError` with `name` for other audio."""
    samples = _checked(audio, name).astype(np.float32)
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def _checked(audio: np.ndarray, name: str) -> np.ndarray:
    audio = np.asarray(audio)
    if audio.ndim not in (1, 2) or len(audio) == 0 or channel_count(audio) not in CHANNELS:
        raise UserError(
            f"{name}: audio must be (T,) or (T, 2) with at least one sample, got shape {audio.shape}"
        )
    if not np.isfinite(audio).all():
        raise UserError(f"{name}: audio holds samples that are not finite (NaN or infinity)")
    return audio
