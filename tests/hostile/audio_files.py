"""Audio files that people have, with a wrong length in their header, or none. Each function returns a file's bytes."""

import io
import struct
from fractions import Fraction

import numpy as np
import soundfile

from melody_jax import mpeg_audio

RATE = 24_000


def noise_then_tone(seconds: float = 8.0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """Half loud noise, half a soft tone (T, channels): a variable bit rate falls in the middle."""
    half = round(seconds * rate / 2)
    noise = np.random.default_rng(0).normal(0, 0.1, half)
    tone = 0.001 * np.sin(2 * np.pi * 440 * np.arange(half) / rate)
    return np.repeat(np.concatenate([noise, tone])[:, None], channels, axis=1)


def encoded(wave: np.ndarray, file_format: str, rate: int = RATE, **options: object) -> bytes:
    """A file of libsndfile."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=file_format, **options)
    return buffer.getvalue()


def mp3(seconds: float = 8.0, mode: str = "VARIABLE", rate: int = 44_100) -> bytes:
    """An MP3 with a table in its first frame."""
    return encoded(noise_then_tone(seconds, rate), "MP3", rate, bitrate_mode=mode, compression_level=0.4)


def without_table(data: bytes) -> bytes:
    """An MP3 without its first frame, which holds the table: as an encoder without `-write_xing` writes it."""
    frames = mpeg_audio.count_frames(data)
    assert frames is not None
    assert frames.declared == frames.count
    return data[frames.start :]


def with_declared_frames(data: bytes, count: int) -> bytes:
    """An MP3 whose table declares another number of frames."""
    place = data.index(b"Xing") if b"Xing" in data[:100] else data.index(b"Info")
    return data[: place + 8] + struct.pack(">I", count) + data[place + 12 :]


def with_id3(data: bytes) -> bytes:
    """A file behind a tag that holds bytes like those of a frame."""
    body = b"APIC" + b"\xff\xfb\x90\xc4" * 50
    return b"ID3\x04\x00\x00" + bytes((0, 0, len(body) >> 7, len(body) & 127)) + body + data


def flac(seconds: float = 8.0, declared: int | None = None) -> bytes:
    """A FLAC file; `declared` replaces the number of samples in its header: 0 as from a pipe."""
    data = bytearray(encoded(noise_then_tone(seconds), "FLAC"))
    if declared is not None:
        data[21] = data[21] & 0xF0 | declared >> 32
        data[22:26] = (declared & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


def wav(
    seconds: float = 8.0,
    riff: int | None = None,
    data: int | None = None,
    rate: int = RATE,
    declared_rate: int | None = None,
    tail: bytes = b"",
) -> bytes:
    """A 16-bit WAV with the given sizes of the RIFF and the data chunk; None: the true ones."""
    samples = (noise_then_tone(seconds, rate)[:, 0] * 32767).astype("<i2").tobytes()
    shown = rate if declared_rate is None else declared_rate
    header = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, shown, 2 * shown, 2, 16)
    size = len(samples) if data is None else data
    body = b"WAVE" + header + b"data" + struct.pack("<I", size) + samples + tail
    return b"RIFF" + struct.pack("<I", len(body) if riff is None else riff) + body


def aac(seconds: float = 8.0, container: str = "ipod", rate: int = 44_100) -> bytes:
    """AAC in MPEG-4 ("ipod", an .m4a) or as bare frames ("adts"); needs PyAV."""
    import av

    wave = noise_then_tone(seconds, rate, 2).T.astype(np.float32)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream("aac", rate=rate, layout="stereo")
        for first in range(0, wave.shape[1], 1024):
            part = np.ascontiguousarray(wave[:, first : first + 1024])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            frame.sample_rate = rate
            frame.pts = first
            frame.time_base = Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()
