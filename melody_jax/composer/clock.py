"""The sampling clock of the renderer: filters, envelopes and generators that depend on the sample rate.

Signals are float32 (T,), unless a function says otherwise. Both generators are fast in NumPy: damped sinusoids are one
matrix product, and choruses of detuned voices are one inverse FFT with a seamless loop.
"""

import functools
from dataclasses import dataclass

import numpy as np

from melody_jax.audio_format import SAMPLE_RATE

LOOP_SECONDS = 65_536 / SAMPLE_RATE
HIGHEST_FREQUENCY = 20_000.0
"""Hz; nothing is synthesised above it at any rate."""


@functools.lru_cache(maxsize=8)
def _times(count: int, sample_rate: int) -> np.ndarray:
    return (np.arange(count) / sample_rate).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _seamless_lengths(about: int) -> np.ndarray:
    """Lengths near `about` with a fast FFT."""
    smooth = (
        2**twos * 3**threes * 5**fives for twos in range(1, 20) for threes in range(11) for fives in range(7)
    )
    return np.array(sorted(length for length in smooth if 0.92 * about < length < 1.05 * about))


@dataclass(frozen=True)
class Clock:
    """Everything that depends on the sample rate. Levels, filters and times are the same at any rate."""

    sample_rate: int = SAMPLE_RATE
    """Samples per second."""

    @property
    def nyquist(self) -> float:
        """Half of the sample rate, Hz."""
        return self.sample_rate / 2

    @property
    def ratio(self) -> float:
        """The sample rate as a multiple of the default one."""
        return self.sample_rate / SAMPLE_RATE

    def samples(self, seconds: float) -> int:
        """The nearest number of samples in `seconds`."""
        return round(seconds * self.sample_rate)

    def highest(self, frequency: float) -> float:
        """`frequency` Hz is the highest of a sound at the default rate; this is the highest at this rate, Hz."""
        return min(frequency * self.ratio, HIGHEST_FREQUENCY)

    def biquad(self, kind: str, frequency: float, quality: float = 0.707, gain_db: float = 0.0) -> np.ndarray:
        """Second-order section (6,): lowpass, highpass, bandpass, peak, lowshelf or highshelf at `frequency` Hz."""
        omega = 2 * np.pi * min(max(frequency, 5.0), 0.98 * self.nyquist) / self.sample_rate
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

    def times(self, count: int) -> np.ndarray:
        """Times of `count` samples in seconds, float32 (count,)."""
        return _times(1 << max(count - 1, 1).bit_length(), self.sample_rate)[:count]

    def decay(self, count: int, seconds: float) -> np.ndarray:
        """Exponential that falls by 60 dB in `seconds`, float32 (count,)."""
        return np.exp(self.times(count) * np.float32(-6.908 / seconds))

    def attack(self, audio: np.ndarray, seconds: float) -> np.ndarray:
        """Fades in the first `seconds` of (T,), in place, with a raised cosine of at least 0.5 ms, to avoid clicks."""
        count = min(len(audio), max(self.samples(0.0005), self.samples(seconds)))
        audio[:count] *= (0.5 - 0.5 * np.cos(np.pi * np.arange(count) / count)).astype(np.float32)
        return audio

    def noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """White noise, float32 (count,), of unit variance at the default rate and the same density at any other."""
        return rng.standard_normal(count, dtype=np.float32) * np.float32(self.ratio**0.5)

    def damped(
        self,
        frequencies: np.ndarray,
        amplitudes: np.ndarray,
        rates: np.ndarray,
        phases: np.ndarray,
        count: int,
    ) -> np.ndarray:
        """Sum of damped sinusoids a exp(-rate t) sin(2 pi f t + phase), float32 (count,), without modes above Nyquist.

        With time split as i * 256 + j, the sum over K modes is a product of (count / 256, K) and (K, 256).
        """
        audible = (frequencies < 0.97 * self.nyquist) & (np.abs(amplitudes) > 1e-5)
        exponent = (2j * np.pi * frequencies[audible] - rates[audible]) / self.sample_rate
        start = amplitudes[audible] * np.exp(1j * phases[audible])
        rows = -(-count // 256)
        outer = np.asarray(np.exp(np.arange(rows)[:, None] * (256 * exponent)) * start, np.complex64)
        inner = np.asarray(np.exp(exponent[:, None] * np.arange(256)), np.complex64)
        left = np.concatenate([outer.imag, outer.real], axis=1)
        right = np.concatenate([inner.real, inner.imag], axis=0)
        return (left @ right).reshape(-1)[:count]

    def ensemble(
        self,
        frequency: float,
        spectra: np.ndarray,
        detune: np.ndarray,
        rng: np.random.Generator,
        coherent: bool,
    ) -> np.ndarray:
        """Loops (N, L) of several detuned voices that share N spectra (N, H); L is about 2.7 s, or half of that.

        `detune` (V, H) or (V, 1) is the relative deviation of the frequency of each voice (and harmonic). `coherent`
        voices have harmonics in phase, like oscillators; otherwise the phases are random, as with many players. L is
        the fast length nearest to an integer number of periods, so that the pitch is exact.
        """
        harmonics = spectra.shape[1]
        lengths = _seamless_lengths(self.samples(LOOP_SECONDS if frequency < 300 else LOOP_SECONDS / 2))
        cycles = frequency * lengths / self.sample_rate
        length = int(lengths[np.argmin(np.abs(cycles - np.round(cycles)))])
        order = np.arange(1, harmonics + 1)
        bins = np.rint(order * frequency * (1 + detune) * length / self.sample_rate).astype(np.int64)
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

    def level(self, audio: np.ndarray, block: float = 0.05, share: float = 1.0) -> float:
        """Root mean square of the loudest fraction `share` of the blocks of `block` s within 20 dB of the loudest.

        `audio` is (T,), or (C, T) for the mean power of the channels.
        """
        channels = np.atleast_2d(audio)
        size = min(self.samples(block), channels.shape[1])
        count = channels.shape[1] // size
        blocks = channels[:, : count * size].reshape(len(channels), count, size)
        energy = (np.einsum("cij,cij->ci", blocks, blocks) / size).mean(axis=0)
        energy = np.sort(energy)[::-1]
        energy = energy[energy > energy[0] * 0.01]
        if len(energy) == 0:
            return 0.0
        return float(np.sqrt(energy[: max(1, round(len(energy) * share))].mean()))
