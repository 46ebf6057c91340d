"""Signal quality of a clip, whatever its music: level, clipping, silence, noise."""

import numpy as np

from melody_jax import loudness
from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.evaluation.sound import Sound
from melody_jax.evaluation.stereo import STEREO, stereo_metrics

SILENCE_DBFS = -60.0
"""A block of 100 ms with a lower RMS is silent, dB of full scale."""
QUIET_DBFS = -50.0
"""A block of 100 ms with a lower RMS counts towards the longest silence, dB of full scale."""
QUIETEST_LUFS = -120.0
"""Loudness of silence in place of -inf LUFS, so that means stay finite."""
BLOCK = SAMPLE_RATE // 10
"""Samples of a block."""
_FFT = 2048


def signal_metrics(sound: Sound) -> dict[str, float]:
    """Signal metrics of a clip:

    loudness_lufs   integrated loudness (ITU-R BS.1770-4) of all channels, LUFS
    peak_dbfs       largest sample, dB of full scale
    clipped         share of samples in flat tops at full scale, 0 to 1
    silent          share of 100 ms blocks below -60 dBFS, 0 to 1
    longest_silence longest time without a 100 ms block of -50 dBFS or more, seconds
    flatness        spectral flatness, the geometric over the arithmetic mean of the power spectrum, averaged over
                    frames that are not silent: 0.56 for white noise, 0 for a sine; 0 if everything is silent
    width_db and so on: see `stereo.stereo_metrics`

    Silence and flatness are those of the clip in 24 kHz mono.
    """
    samples = sound.samples
    rate = sound.audio_format.sample_rate
    wave = sound.to()
    values = {
        "loudness_lufs": max(loudness.integrated(samples, rate), QUIETEST_LUFS),
        "peak_dbfs": float(20 * np.log10(max(float(np.abs(samples).max()), 1e-6))),
        "clipped": float(loudness.clipped_share(samples.reshape(len(samples), -1))),
        "silent": float(np.mean(_block_power(wave) < 10 ** (SILENCE_DBFS / 10))),
        "longest_silence": longest_silence(wave),
        "flatness": _flatness(wave),
    }
    return values | (stereo_metrics(samples, rate) if samples.ndim == 2 else dict.fromkeys(STEREO, np.nan))


def longest_silence(wave: np.ndarray) -> float:
    """Seconds of the longest stretch of a clip (T,) whose blocks of 100 ms are all below -50 dBFS (RMS)."""
    is_loud = _block_power(wave) >= 10 ** (QUIET_DBFS / 10)
    ends = np.flatnonzero(np.concatenate([[True], is_loud, [True]]))
    return float((np.diff(ends) - 1).max() * BLOCK / SAMPLE_RATE)


def _block_power(wave: np.ndarray) -> np.ndarray:
    """Mean squares (blocks,) of the complete blocks of 100 ms; a shorter clip is padded to one."""
    padded = np.pad(wave, (0, max(0, BLOCK - len(wave))))
    blocks = padded[: len(padded) // BLOCK * BLOCK].reshape(-1, BLOCK)
    return np.mean(blocks**2, axis=1)


def _flatness(wave: np.ndarray) -> float:
    padded = np.pad(wave, (0, max(0, _FFT - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[:: _FFT // 2]
    frames = frames[np.mean(frames**2, axis=1) >= 10 ** (SILENCE_DBFS / 10)]
    if not len(frames):
        return 0.0
    power = np.abs(np.fft.rfft(frames * np.hanning(_FFT).astype(np.float32), axis=1))[:, 1:] ** 2 + 1e-10
    return float(np.mean(np.exp(np.log(power).mean(axis=1)) / power.mean(axis=1)))
