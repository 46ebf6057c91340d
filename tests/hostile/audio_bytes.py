"""Audio files with changed, removed, repeated and inserted bytes, most of them in the headers."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from hostile import audio_files
from hostile.kind import Kind
from melody_jax import audio

FORMATS = ("WAV", "FLAC", "OGG", "OPUS", "MP3", "AIFF", "ADTS", "MP4")
INTERESTING = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\x01", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00")
"""Bytes at the edges of the fields of headers."""
MAX_SECONDS = 3600.0


@functools.cache
def valid_file(file_format: str, channels: int = 1) -> bytes:
    """A quarter of a second of noise in a format."""
    if file_format in ("ADTS", "MP4"):
        return audio_files.aac(0.25, {"ADTS": "adts", "MP4": "ipod"}[file_format])
    wave = np.random.default_rng(0).normal(0, 0.1, (4_000, channels))
    if file_format == "OPUS":
        return audio_files.encoded(wave, "OGG", 16_000, subtype="OPUS")
    return audio_files.encoded(wave, file_format, 16_000)


@st.composite
def mutated(draw: st.DrawFn, data: bytes, header: int = 128) -> bytes:
    """`data` after one to six changes, two thirds of them within its first `header` bytes."""
    content = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        end = min(header, len(content)) if draw(st.integers(0, 2)) else len(content)
        place = draw(st.integers(0, max(end - 1, 0)))
        change = draw(st.sampled_from(("replace", "flip", "remove", "repeat", "insert", "cut")))
        if change == "replace":
            value = draw(st.one_of(st.sampled_from(INTERESTING), st.binary(min_size=1, max_size=8)))
            content[place : place + len(value)] = value
        elif change == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "remove":
            del content[place : place + draw(st.integers(1, 64))]
        elif change == "repeat":
            content[place:place] = content[place : place + draw(st.integers(1, 256))]
        elif change == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=16))
        else:
            del content[place + 1 :]
    return bytes(content)


def read(data: bytes, folder: Path) -> None:
    """Reads a file of these bytes; what is accepted is finite and of a length that such bytes can have."""
    path = folder / "a.wav"
    path.write_bytes(data)
    wave = audio.read(path)
    assert wave.dtype == np.float32
    assert 0 < len(wave) <= MAX_SECONDS * audio.SAMPLE_RATE
    assert np.isfinite(wave).all()


def _strategy(file_format: str) -> st.SearchStrategy[bytes]:
    return st.sampled_from((1, 2)).flatmap(lambda channels: mutated(valid_file(file_format, channels)))


KINDS = {
    f"audio, {file_format}": Kind(strategy=functools.partial(_strategy, file_format), run=read)
    for file_format in FORMATS
    if importlib.util.find_spec("av") or file_format not in ("ADTS", "MP4")  # an extra
}
