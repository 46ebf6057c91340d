"""Signal processing of the renderer: filters, wavetables, damped modes, detuned ensembles, varying delays.

All signals are mono float32 (T,) at `melody_jax.audio.SAMPLE_RATE`. The three generators are fast in NumPy: damped
sinusoids are one matrix product, filter sweeps of periodic waves read from filtered tables (band-limited by
construction), and choruses of detuned voices are one inverse FFT with a seamless loop.
"""

import functools

import numpy as np
from scipy import signal

from melody_jax.audio_format import SAMPLE_RATE

NYQUIST = SAMPLE_RATE / 2
ENSEMBLE_LENGTH = 65_536
_POLE = np.array([1.85, 1.0, 0.85], np.float32)


def biquad(kind: str, frequency: float, quality: float = 0.707, gain_db: float = 0.0) -> np.ndarray:
    """Second-order section (6,): lowpass, highpass, bandpass, peak, lowshelf or highshelf at `frequency` Hz."""
    omega = 2 * np.pi * min(max(frequency, 5.0), 0.98 * NYQUIST) / SAMPLE_RATE
    cosine = np.cos(omega)
    alpha = np.sin(omega) / (2 * quality)
    root = 10 ** (gain_db / 40)
    if kind == "lowpass":
        numerator = [(1 - cosine) / 2, 1 - cosine, (1 - cosine) / 2]
        denominator = [1 + alpha, -2 * cosine, 1 - alpha]
    elif kind == "highpass":
        numerator = [(1 + cosine) / 2, -1 - cosine, (1 + cosine) / 2]
        denominator = [1 + alpha, -2 * cosine, 1 - alpha]
    elif kind == "bandpass":
        numerator = [alpha, 0.0, -alpha]
        denominator = [1 + alpha, -2 * cosine, 1 - alpha]
    elif kind == "peak":
        numerator = [1 + alpha * root, -2 * cosine, 1 - alpha * root]
        denominator = [1 + alpha / root, -2 * cosine, 1 - alpha / root]
    elif kind in ("lowshelf", "highshelf"):
        sign = 1.0 if kind == "highshelf" else -1.0
        bend = 2 * np.sqrt(root) * alpha
        plus = root + 1
        minus = root - 1
        numerator = [
            root * (plus + sign * minus * cosine + bend),
            -2 * sign * root * (minus + sign * plus * cosine),
            root * (plus + sign * minus * cosine - bend),
        ]
        denominator = [
            plus - sign * minus * cosine + bend,
            2 * sign * (minus - sign * plus * cosine),
            plus - sign * minus * cosine - bend,
        ]
    else:
        raise ValueError(f"no filter kind {kind!r}")
    return np.array(numerator + denominator) / denominator[0]


def filtered(audio: np.ndarray, *sections: np.ndarray) -> np.ndarray:
    """Filters float32 (T,) with second-order sections in series."""
    return np.asarray(signal.sosfilt(np.stack(sections), audio), np.float32)


def times(count: int) -> np.ndarray:
    """Times of `count` samples in seconds, float32 (count,)."""
    return _times(1 << max(count - 1, 1).bit_length())[:count]


@functools.lru_cache(maxsize=8)
def _times(count: int) -> np.ndarray:
    return (np.arange(count) / SAMPLE_RATE).astype(np.float32)


def decay(count: int, seconds: float) -> np.ndarray:
    """Exponential that falls by 60 dB in `seconds`, float32 (count,)."""
    return np.exp(times(count) * np.float32(-6.908 / seconds))


def attack(audio: np.ndarray, seconds: float) -> np.ndarray:
    """Fades in the first `seconds` of (T,), in place, with a raised cosine of at least 0.5 ms, to avoid clicks."""
    count = min(len(audio), max(12, round(seconds * SAMPLE_RATE)))
    audio[:count] *= (0.5 - 0.5 * np.cos(np.pi * np.arange(count) / count)).astype(np.float32)
    return audio


def noise(rng: np.random.Generator, count: int) -> np.ndarray:
    """White noise of unit variance, float32 (count,)."""
    return rng.standard_normal(count, dtype=np.float32)


def waveshape(audio: np.ndarray, drive: float) -> np.ndarray:
    """Saturates drive * (T,) by x / sqrt(1 + x^2), averaged between neighbouring samples.

    The mean of the curve over the step from one sample to the next has a closed form without a singularity and removes
    most audible aliasing. A one-pole filter restores the treble that averaging attenuates.
    """
    pushed = audio * np.float32(drive)
    root = np.sqrt(1 + pushed * pushed)
    shaped = np.empty_like(pushed)
    shaped[:1] = pushed[:1] / root[:1]
    shaped[1:] = (pushed[1:] + pushed[:-1]) / (root[1:] + root[:-1])
    return np.asarray(signal.lfilter(_POLE[:1], _POLE[1:], shaped), np.float32)


def damped(
    frequencies: np.ndarray, amplitudes: np.ndarray, rates: np.ndarray, phases: np.ndarray, count: int
) -> np.ndarray:
    """Sum of damped sinusoids a exp(-rate t) sin(2 pi f t + phase), float32 (count,), without modes above Nyquist.

    With time split as i * 256 + j, the sum over K modes is a product of (count / 256, K) and (K, 256).
    """
    audible = (frequencies < 0.97 * NYQUIST) & (np.abs(amplitudes) > 1e-5)
    exponent = (2j * np.pi * frequencies[audible] - rates[audible]) / SAMPLE_RATE
    start = amplitudes[audible] * np.exp(1j * phases[audible])
    rows = -(-count // 256)
    outer = np.asarray(np.exp(np.arange(rows)[:, None] * (256 * exponent)) * start, np.complex64)
    inner = np.asarray(np.exp(exponent[:, None] * np.arange(256)), np.complex64)
    left = np.concatenate([outer.imag, outer.real], axis=1)
    right = np.concatenate([inner.real, inner.imag], axis=0)
    return (left @ right).reshape(-1)[:count]


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


@functools.lru_cache(maxsize=2)
def _seamless_lengths(about: int) -> np.ndarray:
    """Lengths near `about` with a fast FFT."""
    smooth = (
        2**twos * 3**threes * 5**fives for twos in range(1, 18) for threes in range(11) for fives in range(7)
    )
    return np.array(sorted(length for length in smooth if 0.92 * about < length < 1.05 * about))


def ensemble(
    frequency: float, spectra: np.ndarray, detune: np.ndarray, rng: np.random.Generator, coherent: bool
) -> np.ndarray:
    """Loops (N, L) of several detuned voices that share N spectra (N, H); L is about 2.7 s, or half of that.

    `detune` (V, H) or (V, 1) is the relative deviation of the frequency of each voice (and harmonic). `coherent` voices
    have harmonics in phase, like oscillators; otherwise the phases are random, as with many players. L is the fast
    length nearest to an integer number of periods, so that the pitch is exact.
    """
    harmonics = spectra.shape[1]
    lengths = _seamless_lengths(ENSEMBLE_LENGTH if frequency < 300 else ENSEMBLE_LENGTH // 2)
    cycles = frequency * lengths / SAMPLE_RATE
    length = int(lengths[np.argmin(np.abs(cycles - np.round(cycles)))])
    order = np.arange(1, harmonics + 1)
    bins = np.rint(order * frequency * (1 + detune) * length / SAMPLE_RATE).astype(np.int64)
    bins = np.broadcast_to(bins, (len(detune), harmonics))
    phases = rng.random((len(detune), 1)) * order if coherent else rng.random((len(detune), harmonics))
    lines = np.exp(2j * np.pi * phases)
    audible = bins < 0.97 * length / 2
    summed = np.zeros((len(spectra), length // 2 + 1), np.complex64)
    for row, amplitudes in zip(summed, spectra, strict=True):
        weights = (lines * amplitudes)[audible]
        row += np.bincount(bins[audible], weights.real, len(row)) + 1j * np.bincount(
            bins[audible], weights.imag, len(row)
        )
    return np.fft.irfft(summed * (length / np.sqrt(len(detune))), length, axis=1)


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


def level(audio: np.ndarray, block: float = 0.05, share: float = 1.0) -> float:
    """Root mean square of the loudest fraction `share` of the blocks of `block` s within 20 dB of the loudest block."""
    size = round(block * SAMPLE_RATE)
    count = max(1, len(audio) // size)
    blocks = audio[: count * size].reshape(count, -1) if len(audio) >= size else audio[None, :]
    energy = np.sort(np.einsum("ij,ij->i", blocks, blocks) / blocks.shape[1])[::-1]
    energy = energy[energy > energy[0] * 0.01]
    if len(energy) == 0:
        return 0.0
    return float(np.sqrt(energy[: max(1, round(len(energy) * share))].mean()))
