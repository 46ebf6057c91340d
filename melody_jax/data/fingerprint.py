"""Finding the same recording twice: pairs of spectral peaks, which survive re-encoding, another level and a late start.

A landmark is two peaks of the spectrogram close in time: their frequencies and distance make a hash, the time of the
first says where. Two copies of a recording share many hashes at one time offset, different recordings hardly any (Wang,
"An industrial-strength audio search algorithm", ISMIR 2003). One hash in eight is kept, chosen by its value, so that
copies keep the same ones.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from scipy import ndimage

FRAME, HOP = 2048, 768
"""Samples at 24 kHz: 85 ms and 32 ms."""
BINS = slice(16, 400)
"""190 Hz to 4.7 kHz, in bins of 11.7 Hz: what every encoder keeps."""
AROUND = 25
"""A peak is the largest value among this many frames (0.8 s) and bins (290 Hz)."""
FAN_OUT, REACH = 4, 62
"""Each peak is paired with this many later ones, at most so many frames away (2 s)."""
KEEP = 8
LEAST = 6
"""Shared landmarks below which nothing is called a copy."""
FLOOR = 1e-3
"""Peaks more than 60 dB below the largest are ignored."""


def landmarks(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and times in frames, int64 (N,) each, of float32 (T,) at 24 kHz; each hash once, where it comes first."""
    if len(wave) < FRAME:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    frames = np.lib.stride_tricks.sliding_window_view(wave, FRAME)[::HOP]
    magnitude = np.abs(np.fft.rfft(frames * np.hanning(FRAME).astype(np.float32), axis=1)[:, BINS])
    highest = ndimage.maximum_filter(magnitude, AROUND, mode="constant")
    time, pitch = np.nonzero((magnitude == highest) & (magnitude > FLOOR * magnitude.max()))
    hashes, times = [], []
    for ahead in range(1, FAN_OUT + 1):
        apart = (time[ahead:] - time[:-ahead] + 1) // 2  # the time of a peak moves by a frame in a copy
        near = (apart > 0) & (apart <= REACH // 2)
        hashes.append(((pitch[:-ahead] * 512 + pitch[ahead:]) * 64 + apart)[near])
        times.append(time[:-ahead][near])
    hashed, first = np.unique(np.concatenate(hashes), return_index=True)
    kept = (hashed * 2654435761 >> 16) % KEEP == 0
    return hashed[kept].astype(np.int64), np.concatenate(times)[first][kept].astype(np.int64)


def exact(wave: np.ndarray) -> int:
    """A key above every landmark that equal waves share: for what has too few peaks to be recognised by them."""
    return (1 << 62) | int.from_bytes(hashlib.sha256(wave.tobytes()).digest()[:7])


def is_copy(offsets: Iterable[int], fewer: int, share: float) -> bool:
    """Whether landmarks shared at `offsets` (frames) mean a copy: `share` of the `fewer` landmarks of the two agree."""
    counts = np.bincount(np.asarray(list(offsets)) - min(offsets))
    agreeing = int(np.convolve(counts, np.ones(3, int)).max())
    return agreeing >= max(LEAST, share * fewer)


def first_copies(
    copies: Iterable[tuple[tuple[int, int], tuple[int, int]]],
) -> dict[tuple[int, int], tuple[int, int]]:
    """(earlier, later) pairs -> for each later one the first that it is a copy of, directly or by way of others."""
    first: dict[tuple[int, int], tuple[int, int]] = {}

    def root(of: tuple[int, int]) -> tuple[int, int]:
        while of in first:
            of = first[of]
        return of

    for earlier, later in sorted(copies):
        one, other = sorted((root(earlier), root(later)))
        if one != other:
            first[other] = one
    return {later: root(later) for later in first}
