"""What is wrong with a clip as a signal, whatever its music: level, clipping, silence, noise."""

import numpy as np

from melody_jax import audio

SILENCE_DBFS = -60.0
"""RMS of 100 ms below which they are silent, dB of full scale."""
QUIETEST_LUFS = -120.0
"""What silence, of -inf LUFS, counts as: means stay finite."""
_FFT = 2048


def figures(wave: np.ndarray) -> dict[str, float]:
    """Of a clip float32 (T,) at 24 kHz:

    loudness_lufs   integrated loudness (ITU-R BS.1770-4), LUFS
    peak_dbfs       largest sample, dB of full scale
    clipped         share of samples in flat tops at full scale, 0 to 1
    silent          share of its 100 ms below -60 dBFS, 0 to 1
    flatness        spectral flatness, geometric over arithmetic mean of the power spectrum, mean over frames that are
                    not silent: 0.56 white noise, 0 a sine; 0 where all is silent
    """
    step = audio.SAMPLE_RATE // 10
    whole = wave[: len(wave) // step * step] if len(wave) >= step else np.pad(wave, (0, step - len(wave)))
    energy = np.mean(whole.reshape(-1, step) ** 2, axis=1)
    return {
        "loudness_lufs": max(audio.loudness(wave), QUIETEST_LUFS),
        "peak_dbfs": float(20 * np.log10(max(float(np.abs(wave).max()), 1e-6))),
        "clipped": float(audio.clipped_share(wave[:, None])),
        "silent": float(np.mean(energy < 10 ** (SILENCE_DBFS / 10))),
        "flatness": _flatness(wave),
    }


def _flatness(wave: np.ndarray) -> float:
    padded = np.pad(wave, (0, max(0, _FFT - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[:: _FFT // 2]
    frames = frames[np.mean(frames**2, axis=1) >= 10 ** (SILENCE_DBFS / 10)]
    if not len(frames):
        return 0.0
    power = np.abs(np.fft.rfft(frames * np.hanning(_FFT).astype(np.float32), axis=1))[:, 1:] ** 2 + 1e-10
    return float(np.mean(np.exp(np.log(power).mean(axis=1)) / power.mean(axis=1)))
