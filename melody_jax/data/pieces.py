"""One recording becomes pieces: decoded, cut, checked, resampled to 24 kHz mono, levelled, encoded as audio records.

What is refused says why: `missing`, `suffix`, `uncaptioned`, `unreadable`, `not finite`, `short` refuse a recording,
`silence` and `clipped` a piece of one. A recording that turns out to be damaged near its end is refused whole.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from melody_jax import audio
from melody_jax.data import fingerprint, tfds_music
from melody_jax.data.layouts import SUFFIXES, Recording
from melody_jax.data.records import encode_json
from melody_jax.errors import UserError

Reject = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PieceConfig:
    """How recordings become pieces, and which are refused."""

    piece_seconds: float = 30.0
    """Length of the pieces a recording is cut into, seconds; a rest under half of that is joined to the last piece."""
    min_seconds: float = 5.0
    """Recordings shorter than this are refused, seconds."""
    loudness_lufs: float = -16.0
    """Integrated loudness (ITU-R BS.1770) every piece is brought to, LUFS; peaks are limited to 0.98."""
    max_gain_db: float = 40.0
    """Most that a piece is turned up, dB."""
    silence_lufs: float = -60.0
    """Pieces quieter than this are refused, LUFS as recorded."""
    max_clipped: float = 0.01
    """Pieces with more than this share of samples in flat tops at full scale are refused, 0 to 1."""
    duplicate_share: float = 0.1
    """A recording is another's copy if this share of its fingerprint agrees, 0 to 1; above 1: nothing is compared."""
    fingerprint_seconds: float = 120.0
    """Length of a recording's beginning that is compared, seconds."""

    def __post_init__(self) -> None:
        for name in ("piece_seconds", "min_seconds", "duplicate_share", "fingerprint_seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be above 0")


@dataclasses.dataclass
class Cut:
    """What became of one recording."""

    records: list[dict[str, np.ndarray]]
    rejects: list[Reject]
    seconds: float
    hashes: np.ndarray
    times: np.ndarray
    exact: int


def cut(recording: Recording, config: PieceConfig) -> Cut:
    """The pieces of a recording as audio records, what was refused, and its fingerprint (see `fingerprint`)."""
    try:
        return _cut(recording, config)
    except _Refused as refused:
        return _nothing([{"recording": recording.id, "reason": refused.reason, "detail": refused.detail}])
    except UserError as error:
        detail = str(error).removeprefix(f"{recording.path}: ")
        return _nothing([{"recording": recording.id, "reason": "unreadable", "detail": detail}])


class _Refused(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def _nothing(rejects: list[Reject]) -> Cut:
    return Cut([], rejects, 0.0, np.zeros(0, np.int64), np.zeros(0, np.int64), 0)


def _cut(recording: Recording, config: PieceConfig) -> Cut:
    found, heard, begin = _nothing([]), [], 0.0
    for number, (block, rate) in enumerate(_blocks(recording, config)):
        if not np.isfinite(block).all():
            raise _Refused("not finite", f"samples that are NaN or infinite after {begin:.2f} s")
        if number == 0 and len(block) < config.min_seconds * rate:
            raise _Refused("short", f"{len(block) / rate:.2f} s")
        seconds = [round(begin, 3), round(begin + len(block) / rate, 3)]
        wave = audio.resample(block.mean(axis=1, dtype=np.float32), rate)
        if begin < config.fingerprint_seconds:
            heard.append(wave)
        begin += len(block) / rate
        loudness, clipped = audio.loudness(wave), audio.clipped_share(block)
        if loudness < config.silence_lufs or clipped > config.max_clipped:
            quiet = loudness < config.silence_lufs
            reason, detail = (
                ("silence", f"{loudness:.1f} LUFS") if quiet else ("clipped", f"{100 * clipped:.1f} %")
            )
            found.rejects.append(
                {"recording": recording.id, "reason": reason, "detail": detail, "seconds": seconds}
            )
            continue
        gain = 10 ** (min(config.loudness_lufs - loudness, config.max_gain_db) / 20)
        found.records.append(_record(recording, number, seconds, audio.peak_limit(wave * np.float32(gain))))
        found.seconds += len(wave) / audio.SAMPLE_RATE
    beginning = np.concatenate(heard)[: round(config.fingerprint_seconds * audio.SAMPLE_RATE)]
    if found.records and config.duplicate_share <= 1:
        found.hashes, found.times = fingerprint.landmarks(beginning)
        found.exact = fingerprint.exact(beginning)
    return found


def _blocks(recording: Recording, config: PieceConfig) -> Iterator[tuple[np.ndarray, int]]:
    if recording.problem:
        known = f"none of {', '.join(SUFFIXES)}"
        why = {"missing": "not there", "suffix": known, "uncaptioned": "not in the table of captions"}
        raise _Refused(recording.problem, why[recording.problem])
    if recording.record >= 0:
        wave = tfds_music.read(recording.path, recording.record)
        size = round(config.piece_seconds * audio.SAMPLE_RATE)
        cuts = [at for at in range(size, len(wave), size) if len(wave) - at >= size / 2]
        yield from ((block[:, None], audio.SAMPLE_RATE) for block in np.split(wave, cuts))
        return
    start, end = 0.0, math.inf
    if recording.clip is not None and (length := audio.seconds(recording.path)) > _length(recording.clip) + 1:
        start, end = recording.clip
        if length < end - 0.5:
            raise _Refused(
                "unreadable", f"{length:.1f} s long: neither the clip {start:g}-{end:g} s nor its video"
            )
    yield from audio.stream(recording.path, config.piece_seconds, start, end)


def _length(clip: tuple[float, float]) -> float:
    return clip[1] - clip[0]


def _record(
    recording: Recording, number: int, seconds: list[float], wave: np.ndarray
) -> dict[str, np.ndarray]:
    meta = {
        "id": f"{recording.id}#{number}",
        "facts": {},
        "captions": list(recording.captions),
        "tags": recording.tags,
        "recording": recording.id,
        "seconds": seconds,
    }
    return {"audio": np.frombuffer(audio.encode_flac(wave), np.uint8), "meta": encode_json(meta)}
