"""Audio files with changed, removed, repeated and inserted bytes, most of them in the headers."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from hostile import audio_files
from hostile.kind import Kind
from melody_jax import audio, audio_headers
from melody_jax.audio_format import SAMPLE_RATE

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
    """`data` after one to six changes, most often one, two thirds of them within its first `header` bytes."""
    content = bytearray(data)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3, 6)))):
        end = min(header, len(content)) if draw(st.integers(0, 2)) else len(content)
        place = draw(st.integers(0, max(end - 1, 0)))
        change = draw(
            st.sampled_from(("replace", "replace", "flip", "flip", "remove", "repeat", "insert", "cut"))
        )
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
    assert 0 < len(wave) <= MAX_SECONDS * SAMPLE_RATE
    assert np.isfinite(wave).all()


def with_checksums(data: bytes) -> bytes:
    """Ogg with true checksums of its pages: changes of the content reach the decoders."""
    content = bytearray(data)
    offset = content.find(b"OggS")
    while 0 <= offset <= len(content) - 27:
        lacing = content[offset + 27 : offset + 27 + content[offset + 26]]
        end = offset + 27 + len(lacing) + sum(lacing)
        content[offset + 22 : offset + 26] = bytes(4)
        page = bytes(content[offset:end])
        checksum = audio_headers.crc(page, 32, 0x04C11DB7)
        content[offset + 22 : offset + 26] = checksum.to_bytes(4, "little")
        offset = content.find(b"OggS", offset + 4)
    return bytes(content)


def _strategy(file_format: str) -> st.SearchStrategy[bytes]:
    header = {"FLAC": 42, "MP4": 1_000}.get(file_format, 128)
    strategy = st.sampled_from((1, 2)).flatmap(
        lambda channels: mutated(valid_file(file_format, channels), header)
    )
    return strategy.map(with_checksums) if file_format in ("OGG", "OPUS") else strategy


KINDS = {
    f"audio, {file_format}": Kind(strategy=functools.partial(_strategy, file_format), run=read)
    for file_format in FORMATS
    if importlib.util.find_spec("av") or file_format not in ("ADTS", "MP4")  # an extra
}
