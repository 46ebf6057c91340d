"""Signal processing of the renderer that is the same at any sample rate: wavetables, loops, varying delays, saturation.

Signals are float32 (T,), unless a function says otherwise. `clock` has what depends on the sample rate. Filter sweeps
of periodic waves read from filtered tables, which are band-limited by construction.
"""

import numpy as np
from scipy import signal

_POLE = np.array([1.85, 1.0, 0.85], np.float32)


def filtered(audio: np.ndarray, *sections: np.ndarray) -> np.ndarray:
    """Filters float32 (..., T) with second-order sections in series."""
    return np.asarray(signal.sosfilt(np.stack(sections), audio), np.float32)


def waveshape(audio: np.ndarray, drive: float) -> np.ndarray:
    """Saturates drive * (..., T) by x / sqrt(1 + x^2), averaged between neighbouring samples.

    The mean of the curve over the step from one sample to the next has a closed form without a singularity and removes
    most audible aliasing. A one-pole filter restores the treble that averaging attenuates.
    """
    pushed = audio * np.float32(drive)
    root = np.sqrt(1 + pushed * pushed)
    shaped = np.empty_like(pushed)
    shaped[..., :1] = pushed[..., :1] / root[..., :1]
    shaped[..., 1:] = (pushed[..., 1:] + pushed[..., :-1]) / (root[..., 1:] + root[..., :-1])
    return np.asarray(signal.lfilter(_POLE[:1], _POLE[1:], shaped), np.float32)


def wave_tables(spectra: np.ndarray) -> np.ndarray:
    """Single-cycle tables (N, size + 1) from complex harmonic amplitudes (N, H) of sines, harmonic 1 first."""
    size = 2048 if spectra.shape[1] <= 340 else 4096
    padded = np.zeros((len(spectra), size // 2 + 1), np.complex64)
    padded[:, 1 : spectra.shape[1] + 1] = spectra * (-0.5j * size)
    tables = np.fft.irfft(padded, size, axis=1)
    return np.concatenate([tables, tables[:, :1]], axis=1)


def scan(tables: np.ndarray, phase: np.ndarray, position: np.ndarray | None = None) -> np.ndarray:
    """Reads tables (N, size + 1) at `phase` (T,) in cycles, crossfading between them by `position` (T,) 0..N-1."""
    size = tables.shape[1] - 1
    fine = phase * size
    index = fine.astype(np.int64)
    fraction = (fine - index).astype(np.float32)
    index &= size - 1
    if position is None:
        row = tables[0]
        low = row[index]
        return low + fraction * (row[index + 1] - low)
    position = np.clip(position, 0, len(tables) - 1.001)
    level = position.astype(np.int64)
    blend = position - level
    index += level * (size + 1)
    flat = tables.reshape(-1)
    low = flat[index]
    high = flat[index + size + 1]
    low += fraction * (flat[index + 1] - low)
    high += fraction * (flat[index + size + 2] - high)
    return low + blend.astype(np.float32) * (high - low)


def lowpass_response(frequencies: np.ndarray, cutoffs: np.ndarray, quality: float) -> np.ndarray:
    """Complex response (N, H) of resonant 24 dB/octave low-passes at `cutoffs` (N,) Hz for `frequencies` (H,) Hz."""
    ratio = frequencies[None, :] / cutoffs[:, None]
    resonant = 1 / (1 - ratio**2 + 1j * ratio / quality)
    return resonant / (1 - ratio**2 + 1j * ratio / 0.707)


def looped(loops: np.ndarray, count: int, position: np.ndarray | None = None) -> np.ndarray:
    """Repeats loops (N, L) for `count` samples, and crossfades between the N loops by `position` (count,) 0..N-1."""
    period = loops.shape[1]
    if position is None:
        return np.resize(loops[0], count)
    output = np.zeros(count, np.float32)
    for row, loop in enumerate(loops):
        weight = np.maximum(0, 1 - np.abs(position - row)).astype(np.float32)
        for start in range(0, count, period):
            stop = min(count, start + period)
            output[start:stop] += weight[start:stop] * loop[: stop - start]
    return output


def delayed(audio: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Delays (T,) by `samples` (T,), a varying number of samples, with linear interpolation."""
    integer = samples.astype(np.int32)
    fraction = (samples - integer).astype(np.float32)
    index = np.arange(len(audio), dtype=np.int32) - integer
    near = audio[np.maximum(index, 0)]
    far = audio[np.maximum(index - 1, 0)]
    near += fraction * (far - near)
    near[index < 0] = 0
    return near


def add_at(target: np.ndarray, start: int, audio: np.ndarray, gain: float = 1.0) -> None:
    """Adds gain * audio to `target` from sample `start` on, in place; parts outside `target` are dropped."""
    first = max(0, -start)
    last = min(len(audio), len(target) - start)
    if last > first:
        target[start + first : start + last] += audio[first:last] * np.float32(gain)
