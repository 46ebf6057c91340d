"""Headers of audio files, compared with the bytes that follow them: no declared length is trusted.

libsndfile takes the length of a file from its header. Writers to a pipe cannot know it, MP3 without a Xing or Info
frame declares none, and a truncated file declares too much. `inspect` refuses truncated files, and returns the content
with a header that tells the truth where the header on the disk does not.

RIFF, RF64 and AIFF: chunks of (name, size). FLAC (RFC 9639): the total number of samples is in STREAMINFO, and each
frame's header numbers its frame or its first sample. MPEG audio (ISO/IEC 11172-3): frames with a header of four bytes;
the first may hold a Xing, Info or VBRI table with the number of frames. Ogg (RFC 3533): pages with their lengths.
"""

import functools
import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from melody_jax import files
from melody_jax.errors import UserError
from melody_jax.mpeg_audio import count_frames, info_frame

CHUNKED = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<", b"BW64": "<", b"FORM": ">"}
"""First bytes of files made of chunks -> byte order of the sizes."""
UNKNOWN_SIZES = (range(0x7FFFE000, 0x80000001), range(0xFFFFFF00, 0x100000000))
"""Sizes that writers to a pipe put into the header of a .wav: sox and arecord, ffmpeg."""
MAX_TAIL = 1 << 16
"""Bytes after the audio of a .wav that are ignored if they are no chunk."""
OGG_PAGE = 27 + 255 + 255 * 255
"""Bytes of the largest page."""
FLAC_TAILS = (1 << 16, 1 << 22)
"""Bytes at the end of a FLAC file in which its last frame is searched, a few first."""


def inspect(file: BinaryIO, size: int, place: str) -> bytes | None:
    """Compares the header of an audio file with its content.

    Args:
        file: the file, readable and seekable.
        size: bytes of the file.
        place: name of the file in messages.

    Returns:
        The content with a true header, or None if the file can be read as it is.

    Raises:
        UserError: the file is empty or cut short, or holds several streams joined.
    """
    if size == 0:
        raise UserError(f"{place}: the file is empty")
    head = _read(file, 0, 12)
    if head[:4] in CHUNKED and head[8:12] in (b"WAVE", b"AIFF", b"AIFC"):
        return _inspect_chunks(file, size, place, head)
    if head[:4] == b"fLaC":
        return _inspect_flac(file, size, place)
    if head[:4] == b"OggS":
        _inspect_ogg(file, size, place)
    return None


def inspect_mpeg(file: BinaryIO, size: int, place: str) -> tuple[int, bytes | None]:
    """As `inspect`, for MPEG audio, which has no magic number: libsndfile recognises it. The layer comes first.

    Layers I and II have no header with a length, and libsndfile reads no more than it guesses.
    """
    data = _content(file, size, place)
    frames = count_frames(data)
    if frames is None:
        raise UserError(
            f"{place}: not an audio file that can be read, or damaged (no MPEG frames of one kind)"
        )
    declared = frames.declared
    if declared == frames.count or frames.layer != 3:
        return frames.layer, None
    if declared is not None and frames.count < declared - 1:
        raise UserError(f"{place}: cut short, {frames.count} of {declared} MPEG frames are present")
    header = info_frame(data[frames.first : frames.first + 4], frames.count)
    return frames.layer, header + data[frames.start :]


def aac_container(file: BinaryIO) -> str:
    """FFmpeg's name of the container of AAC audio: "mov" for MPEG-4, "aac" for bare frames (ADTS); empty for others."""
    head = _read(file, 0, 12)
    if head[4:8] == b"ftyp":
        return "mov"
    return "aac" if len(head) > 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 else ""


@dataclass(frozen=True)
class _Chunk:
    name: bytes
    start: int
    """Offset of the content."""
    size: int
    """Declared bytes of the content."""


def _chunks(file: BinaryIO, size: int, order: str) -> Iterator[_Chunk]:
    offset = 12
    while offset + 8 <= size:
        name, length = struct.unpack(f"{order}4sI", _read(file, offset, 8))
        yield _Chunk(name, offset + 8, length)
        offset += 8 + length + length % 2


def _inspect_chunks(file: BinaryIO, size: int, place: str, head: bytes) -> bytes | None:
    order = CHUNKED[head[:4]]
    audio_name = b"SSND" if head[:4] == b"FORM" else b"data"
    long_size = None
    for chunk in _chunks(file, size, order):
        length = chunk.size
        if chunk.name == b"ds64" and chunk.size >= 16:
            long_size = struct.unpack(f"{order}Q", _read(file, chunk.start + 8, 8).ljust(8, b"\0"))[0]
        if chunk.name != audio_name:
            continue
        if head[:4] in (b"RF64", b"BW64") and length == 0xFFFFFFFF and long_size is not None:
            length = long_size
        elif any(length in unknown for unknown in UNKNOWN_SIZES) and chunk.start + length > size:
            return None  # libsndfile reads to the end of the file
        present = size - chunk.start
        if length > present:
            raise UserError(f"{place}: cut short, {present} of {length} bytes of audio are present")
        return _inspect_tail(file, size, place, order, _Chunk(chunk.name, chunk.start, length))
    return None


def _inspect_tail(file: BinaryIO, size: int, place: str, order: str, chunk: _Chunk) -> bytes | None:
    """Looks for audio that the size of the audio chunk leaves out."""
    end = chunk.start + chunk.size + chunk.size % 2
    rest = _read(file, end, 8)
    if end >= size or _is_chunk(rest, size - end, order) or rest[:3] in (b"TAG", b"ID3", b"APE"):
        return None
    if chunk.size == 0:  # a writer to a pipe that never came back to the header
        data = bytearray(_content(file, size, place))
        data[chunk.start - 4 : chunk.start] = struct.pack(f"{order}I", size - chunk.start)
        return bytes(data)
    left_out = size - end
    if left_out > MAX_TAIL and any(_read(file, end, MAX_TAIL)):
        raise UserError(
            f"{place}: the header declares {chunk.size} bytes of audio, but {left_out} more bytes follow; "
            "write the file again with a true length"
        )
    return None


def _is_chunk(header: bytes, left: int, order: str) -> bool:
    if len(header) < 8 or not re.fullmatch(rb"[ -~]{4}", header[:4]):
        return False
    return struct.unpack(f"{order}I", header[4:])[0] <= left - 8


def _inspect_ogg(file: BinaryIO, size: int, place: str) -> None:
    """The last page must be whole, and no second stream may follow the first."""
    tail = _read(file, max(0, size - OGG_PAGE), OGG_PAGE)
    start = tail.rfind(b"OggS")
    page = tail[start:]
    if start >= 0 and len(page) < 27:
        raise UserError(f"{place}: cut short, the last Ogg page is not complete")
    if start >= 0 and len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        raise UserError(f"{place}: cut short, the last Ogg page is not complete")
    streams = _ogg_streams(file, size)
    if streams > 1:
        raise UserError(f"{place}: holds {streams} Ogg streams, one after the other; write them as one")


def _ogg_streams(file: BinaryIO, size: int) -> int:
    """Number of streams that begin after another one has begun and sent its first page of data, and the first."""
    offset = 0
    streams = 0
    in_header = False
    while offset + 27 <= size:
        page = _read(file, offset, 27 + 255)
        if page[:4] != b"OggS":
            break
        begins = bool(page[5] & 2)
        streams += begins and not in_header
        in_header = begins
        offset += 27 + page[26] + sum(page[27 : 27 + page[26]])
    return streams


def _inspect_flac(file: BinaryIO, size: int, place: str) -> bytes | None:
    header = _read(file, 0, 42)
    if len(header) < 42 or header[4] & 0x7F != 0:
        return None  # libsndfile says what is wrong
    declared = int.from_bytes(header[21:26], "big") & 0xFFFFFFFFF
    present = _flac_length(file, size, int.from_bytes(header[10:12], "big"))
    if present is None:
        if declared == 0:
            raise UserError(f"{place}: cut short, its last FLAC frame is not complete")
        return None  # libsndfile fails when it reaches the damage
    if present < declared:
        raise UserError(f"{place}: cut short, {present} of {declared} samples are present")
    if present == declared:
        return None
    data = bytearray(_content(file, size, place))
    data[21] = data[21] & 0xF0 | present >> 32
    data[22:26] = (present & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


def _flac_length(file: BinaryIO, size: int, block_size: int) -> int | None:
    """Number of samples up to the end of the last frame, which must reach the end of the file; None if none does."""
    end = size - 128 if size > 170 and _read(file, size - 128, 3) == b"TAG" else size
    for length in FLAC_TAILS:
        begin = max(42, end - length)
        tail = _read(file, begin, end - begin)
        start = len(tail)
        while (start := max(tail.rfind(b"\xff\xf8", 0, start), tail.rfind(b"\xff\xf9", 0, start))) >= 0:
            count = _flac_frame_end(tail[start : start + 16], block_size)
            if count is not None and crc(tail[start:], 16, 0x8005) == 0:
                return count
        if begin == 42:
            break
    return None


def _flac_frame_end(header: bytes, block_size: int) -> int | None:
    """Number of samples of a stream up to the end of the frame with this header; None for other bytes."""
    if len(header) < 6 or header[3] & 1:
        return None
    code = header[2] >> 4
    rate_code = header[2] & 15
    first_byte = header[4]
    length = 1 if first_byte < 0x80 else 8 - (first_byte ^ 0xFF).bit_length()
    if code == 0 or rate_code == 15 or first_byte & 0xC0 == 0x80 or first_byte == 0xFF:
        return None
    number = first_byte & (0x7F if length == 1 else 0x7F >> length)
    for byte in header[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    offset = 4 + length
    extra = {6: 1, 7: 2}.get(code, 0)
    if code == 1:
        samples = 192
    elif code < 6:
        samples = 576 << code - 2
    elif code < 8:
        samples = int.from_bytes(header[offset : offset + extra], "big") + 1
    else:
        samples = 256 << code - 8
    offset += extra + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if offset >= len(header) or crc(header[: offset + 1], 8, 0x07):
        return None
    return (number if header[1] & 1 else number * block_size) + samples


def crc(data: bytes, bits: int, polynomial: int) -> int:
    """Cyclic redundancy check, most significant bit first; 0 over data with its own check at the end."""
    table = _crc_table(bits, polynomial)
    value = 0
    mask = (1 << bits) - 1
    for byte in data:
        value = (value << 8 & mask) ^ table[value >> bits - 8 ^ byte]
    return value


@functools.cache
def _crc_table(bits: int, polynomial: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> bits - 1 else 0)
            value &= (1 << bits) - 1
        table.append(value)
    return table


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset, io.SEEK_SET)
    return file.read(count)


def _content(file: BinaryIO, size: int, place: str) -> bytes:
    if size > files.MAX_BYTES:
        raise UserError(f"{place}: {size} bytes without a true header, at most {files.MAX_BYTES} are read")
    return _read(file, 0, size)
