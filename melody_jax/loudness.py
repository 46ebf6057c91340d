"""Loudness and peaks of audio, float32 (T,) or (T, C) in [-1, 1]. NumPy.

Loudness is the integrated loudness of ITU-R BS.1770-4: K-weighting, the energies of all channels added, 400 ms blocks
every 100 ms, an absolute gate at -70 LUFS and a relative gate 10 LU below the mean of the remaining blocks.
"""

import functools

import numpy as np
from jaxtyping import Float

from melody_jax.audio import AnyAudio, Audio, channel_count, per_sample
from melody_jax.audio_format import SAMPLE_RATE

CEILING = 0.98
"""Largest sample magnitude after the peak limiter."""
LOOKAHEAD = 0.004
"""Seconds. The gain of `peak_limit` falls and recovers within twice this time on either side of a peak."""
FULL_SCALE = 0.999
"""Magnitude from which samples count as clipped, in runs of three or more."""


def integrated(audio: AnyAudio, sample_rate: int = SAMPLE_RATE) -> float:
    """Integrated loudness of (T,) or (T, C) in LUFS; -inf for silence.

    Audio shorter than 400 ms counts as one block. A sound in both of two channels is 3 LU louder than in one.
    """
    channels = np.asarray(audio, np.float32).reshape(len(audio), channel_count(audio)).T
    energies = [_step_energies(np.ascontiguousarray(channel), sample_rate) for channel in channels]
    step_means = np.sum([steps for steps, _ in energies], axis=0)
    overall = sum(total for _, total in energies)
    if len(step_means) < 4:
        blocks = np.array([overall])
    else:
        blocks = np.lib.stride_tricks.sliding_window_view(step_means, 4).mean(axis=1)
    gated = blocks[blocks > _energy_at(-70.0)]
    if len(gated) == 0:
        return -np.inf
    gated = gated[gated > gated.mean() * 0.1]
    return float(-0.691 + 10 * np.log10(gated.mean()))


def normalise(
    audio: AnyAudio, target_lufs: float = -16.0, max_gain_db: float = 40.0, sample_rate: int = SAMPLE_RATE
) -> Audio:
    """Scales (T,) or (T, C) to an integrated loudness of `target_lufs`, by at most `max_gain_db`.

    Silence stays silence. The result may exceed [-1, 1]; apply `peak_limit` afterwards.
    """
    measured = integrated(audio, sample_rate)
    if not np.isfinite(measured):
        return np.asarray(audio, np.float32)
    gain_db = min(target_lufs - measured, max_gain_db)
    return np.asarray(audio, np.float32) * np.float32(10 ** (gain_db / 20))


def peak_limit(
    audio: AnyAudio, ceiling: float = CEILING, lookahead: float = LOOKAHEAD, sample_rate: int = SAMPLE_RATE
) -> Audio:
    """Lowers the gain around peaks of (T,) or (T, C) so that no sample exceeds `ceiling`.

    Without such samples it returns the audio unchanged. All channels have the same gain. The gain that each sample
    needs is reduced to its running minimum over `lookahead` seconds to both sides, then averaged over the same span.
    Every averaged value is low enough for the sample in the middle, so the ceiling is never exceeded and the gain
    changes gradually.
    """
    audio = np.asarray(audio, np.float32)
    magnitude = np.abs(audio).reshape(len(audio), channel_count(audio)).max(axis=1)
    if len(audio) == 0 or magnitude.max() <= ceiling:
        return audio
    span = max(1, round(lookahead * sample_rate))
    required = np.minimum(1.0, ceiling / np.maximum(magnitude, ceiling))
    lowest = _running_minimum(np.pad(required, 2 * span, constant_values=1.0), 2 * span + 1)
    total = np.cumsum(np.concatenate(([0.0], lowest)), dtype=np.float64)
    gain = (total[2 * span + 1 :] - total[: -2 * span - 1]) / (2 * span + 1)
    return np.clip(audio * per_sample(gain, audio), -ceiling, ceiling).astype(np.float32)


def clipped_share(block: Float[np.ndarray, "T channels"]) -> float:
    """Fraction of clipped frames of (T, channels): those in runs of three or more with some channel at full scale."""
    top = np.any(np.abs(block) >= FULL_SCALE, axis=1)
    middle = top[1:-1] & top[:-2] & top[2:]
    flat = np.zeros(len(block), bool)
    for shift in range(3):
        flat[shift : shift + len(middle)] |= middle
    return float(flat.mean())


def _running_minimum(values: np.ndarray, width: int) -> np.ndarray:
    """Minimum over every `width` consecutive values, (N,) -> (N - width + 1,), by repeated doubling of the window."""
    covered = 1
    while covered * 2 <= width:
        values = np.minimum(values[:-covered], values[covered:])
        covered *= 2
    remaining = width - covered
    return np.minimum(values[: len(values) - remaining], values[remaining:])


def _energy_at(lufs: float) -> float:
    return 10 ** ((lufs + 0.691) / 10)


def _step_energies(audio: np.ndarray, sample_rate: int) -> tuple[np.ndarray, float]:
    """Mean square of K-weighted (T,) in every full 100 ms, and overall.

    The filters' impulse response is applied by overlap-save, a few segments at once: more would exceed the cache.
    """
    response, taps = _k_response(sample_rate)
    step = round(0.1 * sample_rate)
    size = 2 * (len(response) - 1)
    hop = size - taps
    if len(audio) == 0:
        return np.zeros(0), 0.0
    padded = np.zeros(taps + -(-len(audio) // hop) * hop, np.float32)
    padded[taps : taps + len(audio)] = audio
    segments = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    sums = []
    for first in range(0, len(segments), 8):
        spectrum = np.fft.rfft(segments[first : first + 8], axis=1)
        spectrum *= response
        filtered = np.ascontiguousarray(np.fft.irfft(spectrum, axis=1)[:, taps:]).reshape(-1, step)
        sums.append(np.einsum("ij,ij->i", filtered, filtered))
    energy = np.concatenate(sums).astype(np.float64)
    return energy[: len(audio) // step] / step, float(energy.sum() / len(audio))


@functools.lru_cache(maxsize=8)
def _k_response(sample_rate: int) -> tuple[np.ndarray, int]:
    """Spectrum (complex64) and length of the K-weighting's impulse response, which decays below 1e-8 within 0.1 s.

    BS.1770 gives the shelf and the high-pass as coefficients at 48 kHz. Their analogue prototypes (centre frequency,
    gain, quality) give the same coefficients at 48 kHz and correct ones at every other rate.
    """
    shelf = _shelf(1681.974450955533, 3.999843853973347, 0.7071752369554196, sample_rate)
    high_pass = _high_pass(38.13547087602444, 0.5003270373238773, sample_rate)
    taps = round(0.1 * sample_rate)
    impulse = np.zeros(taps)
    impulse[0] = 1.0
    for numerator, denominator in (shelf, high_pass):
        impulse = _biquad(impulse, numerator, denominator)
    return np.fft.rfft(impulse, 4 * taps).astype(np.complex64), taps


def _shelf(
    frequency: float, gain_db: float, quality: float, sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    warped = np.tan(np.pi * frequency / sample_rate)
    high = 10 ** (gain_db / 20)
    middle = high**0.4996667741545416
    scale = 1 + warped / quality + warped**2
    numerator = np.array([high + middle * warped / quality + warped**2, 2 * (warped**2 - high), 0.0])
    numerator[2] = high - middle * warped / quality + warped**2
    return numerator / scale, np.array(
        [1.0, 2 * (warped**2 - 1) / scale, (1 - warped / quality + warped**2) / scale]
    )


def _high_pass(frequency: float, quality: float, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    warped = np.tan(np.pi * frequency / sample_rate)
    scale = 1 + warped / quality + warped**2
    denominator = np.array([1.0, 2 * (warped**2 - 1) / scale, (1 - warped / quality + warped**2) / scale])
    return np.array([1.0, -2.0, 1.0]), denominator


def _biquad(signal: np.ndarray, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    output = np.zeros_like(signal)
    first = second = 0.0
    for index, value in enumerate(signal):
        output[index] = numerator[0] * value + first
        first = numerator[1] * value - denominator[1] * output[index] + second
        second = numerator[2] * value - denominator[2] * output[index]
    return output
