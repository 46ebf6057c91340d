"""Duplicate detection by spectral landmarks, which survive re-encoding, level changes and a late start.

A landmark is a pair of spectrogram peaks close in time: their frequencies and distance form a hash, the time of the
first is its position. Two copies of a recording share many hashes at one time offset, different recordings hardly any
(Wang, "An industrial-strength audio search algorithm", ISMIR 2003). One hash in eight is kept, selected by its value,
so that copies keep the same ones.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from scipy import ndimage

FRAME = 2048
"""Samples at 24 kHz: 85 ms."""
HOP = 768
"""Samples at 24 kHz: 32 ms."""
BINS = slice(16, 400)
"""190 Hz to 4.7 kHz, in bins of 11.7 Hz: frequencies that every codec preserves."""
NEIGHBOURHOOD = 25
"""A peak is the largest value among this many frames (0.8 s) and bins (290 Hz)."""
FAN_OUT = 4
"""Number of later peaks that each peak is paired with."""
REACH = 62
"""Largest distance of a pair, frames (2 s)."""
KEEP = 8
"""One hash in this many is kept."""
MIN_MATCHES = 6
"""With fewer matching landmarks, nothing is a copy."""
FLOOR = 1e-3
"""Peaks more than 60 dB below the largest are ignored."""

RecordingKey = tuple[int, int]
"""(unit, index within the unit)"""


def landmarks(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and times in frames, int64 (N,) each, of float32 (T,) at 24 kHz; each hash once, at its first time."""
    if len(wave) < FRAME:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    frames = np.lib.stride_tricks.sliding_window_view(wave, FRAME)[::HOP]
    magnitude = np.abs(np.fft.rfft(frames * np.hanning(FRAME).astype(np.float32), axis=1)[:, BINS])
    highest = ndimage.maximum_filter(magnitude, NEIGHBOURHOOD, mode="constant")
    time, pitch = np.nonzero((magnitude == highest) & (magnitude > FLOOR * magnitude.max()))
    hashes, times = [], []
    for ahead in range(1, FAN_OUT + 1):
        distance = (
            time[ahead:] - time[:-ahead] + 1
        ) // 2  # in a copy, the time of a peak can move by a frame
        close = (distance > 0) & (distance <= REACH // 2)
        hashes.append(((pitch[:-ahead] * 512 + pitch[ahead:]) * 64 + distance)[close])
        times.append(time[:-ahead][close])
    unique, first = np.unique(np.concatenate(hashes), return_index=True)
    selected = (unique * 2654435761 >> 16) % KEEP == 0
    return unique[selected].astype(np.int64), np.concatenate(times)[first][selected].astype(np.int64)


def audio_key(wave: np.ndarray) -> int:
    """A key above every landmark that only equal audio shares: for audio with too few peaks to be recognised."""
    return (1 << 62) | int.from_bytes(hashlib.sha256(wave.tobytes()).digest()[:7])


def matching_landmarks(offsets: Iterable[int]) -> int:
    """How many of the landmarks shared at `offsets` (frames, at least one) agree on an offset, within a frame."""
    frames = np.asarray(list(offsets))
    return int(np.convolve(np.bincount(frames - frames.min()), np.ones(3, int)).max())


def is_copy(offsets: Iterable[int], fewer: int, share: float) -> bool:
    """Whether landmarks shared at `offsets` (frames) mean a copy.

    They do if the fraction `share` of `fewer`, the smaller number of landmarks of the two recordings, matches.
    """
    return matching_landmarks(offsets) >= max(MIN_MATCHES, share * fewer)


def first_copies(pairs: Iterable[tuple[RecordingKey, RecordingKey]]) -> dict[RecordingKey, RecordingKey]:
    """Maps every copy to the first recording that it repeats, directly or through other copies.

    `pairs` are (earlier, later).
    """
    parents: dict[RecordingKey, RecordingKey] = {}

    def root(key: RecordingKey) -> RecordingKey:
        while key in parents:
            key = parents[key]
        return key

    for earlier, later in sorted(pairs):
        first, second = sorted((root(earlier), root(later)))
        if first != second:
            parents[second] = first
    return {key: root(key) for key in parents}
