"""One recording becomes pieces: decoded, cut, checked, converted, normalised, encoded as audio records.

Every reject has a reason. `missing`, `ambiguous`, `suffix`, `hidden`, `uncaptioned`, `unreadable`, `not finite` and
`short` reject a whole recording, `silence` and `clipped` one piece of it. Damage near the end rejects the whole
recording. Audio without a caption is decoded up to its first good piece, because a fault of the file is the reason that
a person can act on.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from melody_jax import audio, loudness
from melody_jax.audio_format import DEFAULT_FORMAT, SAMPLE_RATE
from melody_jax.data import fingerprint
from melody_jax.data.layouts import UNCAPTIONED, Recording
from melody_jax.data.prepare_config import PieceConfig
from melody_jax.data.records import encode_json
from melody_jax.errors import UserError

CANCEL = "channels cancel"
"""Note on a recording of which one channel is used, because the mean of the channels is all but silent."""
CONVERTED = "upsampled or other channels"
"""Note on a recording with a lower sample rate, or another number of channels, than the pieces."""
Reject = dict[str, Any]
"""{"recording", "reason", "detail"}, and "seconds" (start, end) if only one piece is rejected."""


@dataclasses.dataclass
class CutResult:
    """The pieces of one recording, its rejects and its fingerprint."""

    records: list[dict[str, np.ndarray]]
    """Audio records of the pieces."""
    rejects: list[Reject]
    seconds: float
    """Total length of the pieces."""
    hashes: np.ndarray
    """Landmarks, int64 (N,)."""
    times: np.ndarray
    """Times of the landmarks, int64 (N,), frames."""
    audio_key: int
    """Equal for equal audio; 0 if there are no pieces."""
    notes: list[Reject]
    """What was done to the recording that its owner would not expect, at most one per recording."""


def cut_recording(recording: Recording, config: PieceConfig) -> CutResult:
    """Cuts a recording into audio records and fingerprints its beginning."""
    try:
        return _cut(recording, config)
    except _Rejected as error:
        return _no_pieces([_reject(recording, error.reason, error.detail)])
    except UserError as error:
        detail = str(error).removeprefix(f"{recording.path}: ")
        return _no_pieces([_reject(recording, "unreadable", detail)])


class _Rejected(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def _reject(recording: Recording, reason: str, detail: str, **fields: Any) -> Reject:
    return {"recording": recording.id, "reason": reason, "detail": detail, **fields}


def _no_pieces(rejects: list[Reject]) -> CutResult:
    return CutResult([], rejects, 0.0, np.zeros(0, np.int64), np.zeros(0, np.int64), 0, [])


def _cut(recording: Recording, config: PieceConfig) -> CutResult:
    result = _no_pieces([])
    beginning: list[np.ndarray] = []
    start = 0.0
    for number, (block, rate) in enumerate(_blocks(recording, config)):
        if not np.isfinite(block).all():
            raise _Rejected("not finite", f"samples that are NaN or infinite after {start:.2f} s")
        if number == 0 and len(block) < config.min_seconds * rate:
            raise _Rejected("short", f"{len(block) / rate:.2f} s")
        seconds = [round(start, 3), round(start + len(block) / rate, 3)]
        converted, cancels = audio.to_channels(block, config.channels)
        if number == 0 and config.audio_format != DEFAULT_FORMAT:
            channels = block.shape[1]
            if rate < config.sample_rate or channels != config.channels:
                detail = f"{rate} Hz with {channels} channels; the pieces are {config.audio_format}"
                result.notes.append({"recording": recording.id, "note": CONVERTED, "detail": detail})
        if cancels and not result.notes:
            detail = f"the channels cancel each other after {start:.2f} s; the loudest is used"
            result.notes.append({"recording": recording.id, "note": CANCEL, "detail": detail})
        wave = audio.resample(converted, rate, config.sample_rate)
        if start < config.fingerprint_seconds:
            beginning.append(audio.convert(wave, config.audio_format, DEFAULT_FORMAT))
        start += len(block) / rate
        measured = loudness.integrated(wave, config.sample_rate)
        clipped = loudness.clipped_share(block)
        if measured < config.silence_lufs:
            result.rejects.append(_reject(recording, "silence", f"{measured:.1f} LUFS", seconds=seconds))
        elif clipped > config.max_clipped:
            result.rejects.append(_reject(recording, "clipped", f"{100 * clipped:.1f} %", seconds=seconds))
        elif recording.problem:
            raise _Rejected(recording.problem, recording.detail)
        else:
            gain = 10 ** (min(config.loudness_lufs - measured, config.max_gain_db) / 20)
            levelled = loudness.peak_limit(wave * np.float32(gain), sample_rate=config.sample_rate)
            result.records.append(_record(recording, number, seconds, levelled, config.sample_rate))
            result.seconds += len(wave) / config.sample_rate
    if result.records and config.duplicate_share <= 1:
        compared = np.concatenate(beginning)[: round(config.fingerprint_seconds * SAMPLE_RATE)]
        result.hashes, result.times = fingerprint.landmarks(compared)
        result.audio_key = fingerprint.audio_key(compared)
    return result


def _blocks(recording: Recording, config: PieceConfig) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks float32 (T, channels) of a recording, one per piece, and their sample rate."""
    if recording.problem and recording.problem != UNCAPTIONED:
        raise _Rejected(recording.problem, recording.detail)
    if recording.record >= 0:
        from melody_jax.data import tfds_music  # TFDS takes seconds to import and is an extra

        wave = tfds_music.read(recording.path, recording.record)
        size = round(config.piece_seconds * SAMPLE_RATE)
        cuts = [end for end in range(size, len(wave), size) if len(wave) - end >= size / 2]
        yield from ((block[:, None], SAMPLE_RATE) for block in np.split(wave, cuts))
        return
    start, end = _captioned_part(recording)
    yield from audio.stream(recording.path, config.piece_seconds, start, end)


def _captioned_part(recording: Recording) -> tuple[float, float]:
    """Start and end in seconds of the part that is used: all of a file unless it is much longer than its clip."""
    if recording.clip is None:
        return 0.0, math.inf
    start, end = recording.clip
    length = audio.seconds(recording.path)
    if length <= end - start + 1:
        return 0.0, math.inf
    if length < end - 0.5:
        raise _Rejected(
            "unreadable", f"{length:.1f} s long: neither the clip {start:g}-{end:g} s nor its video"
        )
    return start, end


def _record(
    recording: Recording, number: int, seconds: list[float], wave: np.ndarray, sample_rate: int
) -> dict[str, np.ndarray]:
    meta = {
        "id": f"{recording.id}#{number}",
        "facts": {},
        "captions": list(recording.captions),
        "tags": recording.tags,
        "recording": recording.id,
        "seconds": seconds,
    }
    flac = audio.encode_flac(wave, sample_rate)
    return {"audio": np.frombuffer(flac, np.uint8), "meta": encode_json(meta)}
