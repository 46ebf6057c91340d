"""Frames of MPEG audio (ISO/IEC 11172-3 and 13818-3): counted by their headers, and an Info frame that declares them.

A frame begins with 11 set bits, then version, layer, bit rate, sample rate, padding and channel mode. The first frame
may hold no audio but a table: `Xing` or `Info` after the side information, or `VBRI`, with the number of frames.
"""

import struct
from dataclasses import dataclass

VERSIONS = {3: 1, 2: 2, 0: 2.5}
"""Bits of the header -> MPEG version."""
KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""(version, layer) -> bit rates; layer III of version 2 has those of its layer II."""
RATES = {1: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 2.5: (11_025, 12_000, 8_000)}
"""Version -> sample rates."""
VBRI_OFFSET = 36
"""Offset of a VBRI table in its frame."""


@dataclass(frozen=True)
class Header:
    """The header of one frame."""

    version: float
    layer: int
    rate: int
    """Sample rate, Hz."""
    is_mono: bool
    size: int
    """Bytes of the frame."""

    @property
    def kind(self) -> tuple[float, int, int]:
        """What all frames of a stream share."""
        return self.version, self.layer, self.rate


@dataclass(frozen=True)
class Frames:
    """The frames of a file."""

    layer: int
    """1, 2 or 3."""
    count: int
    """Frames with audio."""
    declared: int | None
    """Frames that the table in the first frame declares; None without a table."""
    first: int
    """Offset of the first frame, table or not."""
    start: int
    """Offset of the first frame with audio."""


def parse_header(data: bytes, offset: int) -> Header | None:
    """The header at an offset; None for other bytes, and for frames of free bit rate, whose size is unknown."""
    if offset + 4 > len(data):
        return None
    word = int.from_bytes(data[offset : offset + 4], "big")
    version = VERSIONS.get(word >> 19 & 3)
    layer = 4 - (word >> 17 & 3)
    rate_code = word >> 12 & 15
    sample_rate_code = word >> 10 & 3
    if word >> 21 != 0x7FF or version is None or layer == 4 or sample_rate_code == 3:
        return None
    if rate_code in (0, 15):
        return None
    family = 1 if version == 1 else 2
    bits = KBITS[family, min(layer, 2) if family == 2 else layer][rate_code - 1] * 1000
    rate = RATES[version][sample_rate_code]
    padding = word >> 9 & 1
    if layer == 1:
        size = (12 * bits // rate + padding) * 4
    else:
        size = (72 if layer == 3 and family == 2 else 144) * bits // rate + padding
    return Header(version, layer, rate, word >> 6 & 3 == 3, size)


def count_frames(data: bytes) -> Frames | None:
    """Counts the complete frames of a file by their headers, past tags and damaged bytes; None if there are none."""
    first = _next_frame(data, _id3_end(data), None)
    if first is None:
        return None
    header = parse_header(data, first)
    assert header is not None
    declared, has_table = _table(data, first, header)
    start = first + header.size if has_table else first
    count = 0
    offset: int | None = start
    while offset is not None and offset < len(data):
        frame = parse_header(data, offset)
        if frame is None or frame.kind != header.kind:
            offset = _next_frame(data, offset + 1, header)
        elif offset + frame.size > len(data):
            break
        else:
            count += 1
            offset += frame.size
    return Frames(header.layer, count, declared, first, start) if count else None


def info_frame(header: bytes, count: int) -> bytes:
    """A frame without audio that declares the number of frames, with version, rate and mode of the header (4 bytes).

    Its bit rate is 128 kbit/s, 80 for version 2, which has room for the table at every sample rate.
    """
    changed = bytearray(header)
    changed[1] |= 1  # no checksum
    changed[2] = 0x90 | changed[2] & 0x0C
    parsed = parse_header(bytes(changed), 0)
    assert parsed is not None
    frame = bytearray(parsed.size)
    frame[:4] = changed
    offset = _table_offset(parsed)
    frame[offset : offset + 12] = b"Info" + struct.pack(">II", 1, count)
    return bytes(frame)


def _table(data: bytes, offset: int, header: Header) -> tuple[int | None, bool]:
    """Declared frames of the table in a frame, and whether there is a table."""
    for place in (
        offset + _table_offset(header),
        offset + _table_offset(header) + 2,
    ):  # a checksum has two bytes
        if header.layer == 3 and data[place : place + 4] in (b"Xing", b"Info"):
            flags, count = struct.unpack(">II", data[place + 4 : place + 12].ljust(8, b"\0"))
            return (count if flags & 1 else None), True
    place = offset + VBRI_OFFSET
    if header.layer == 3 and data[place : place + 4] == b"VBRI":
        return struct.unpack(">I", data[place + 14 : place + 18].ljust(4, b"\0"))[0], True
    return None, False


def _table_offset(header: Header) -> int:
    side_information = (17, 32) if header.version == 1 else (9, 17)
    return 4 + side_information[not header.is_mono]


def _next_frame(data: bytes, offset: int, like: Header | None) -> int | None:
    """Offset of the next frame, confirmed by the header after it, or by the end of the data."""
    while (offset := data.find(b"\xff", offset)) >= 0:
        header = parse_header(data, offset)
        if header is not None and (like is None or header.kind == like.kind):
            following = parse_header(data, offset + header.size)
            at_end = offset + header.size >= len(data) - 3
            if at_end or (following is not None and following.kind == header.kind):
                return offset
        offset += 1
    return None


def _id3_end(data: bytes) -> int:
    """Offset of the first byte after the ID3v2 tags at the beginning."""
    offset = 0
    while data[offset : offset + 3] == b"ID3" and offset + 10 <= len(data):
        size = 0
        for byte in data[offset + 6 : offset + 10]:
            size = size << 7 | byte & 0x7F
        offset += 10 + size + (10 if data[offset + 5] & 0x10 else 0)
    return offset
