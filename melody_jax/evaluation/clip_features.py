"""Features of a clip for the judges of adherence: log-mel statistics, chroma, onset autocorrelation, tempo.

The model's conditioning must not judge the model, so nothing here is shared with MuLan or the semantic
tokenizer.
"""

import jax.numpy as jnp
import numpy as np

from melody_jax import spectral
from melody_jax.audio_format import SAMPLE_RATE

VERSION = 1
"""Version of the features: raise it when a clip gets other numbers."""
BANDS = 64
"""Mel bands."""
MODULATIONS_HZ = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0)
"""Modulation frequencies in the log-mel statistics."""
BEATS = (0.25, 1 / 3, 0.5, 2 / 3, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0)
"""Lags of the onset autocorrelation, in beats."""
TEMPO_TOLERANCE = 0.08
"""Relative tolerance of a correct tempo."""
_FFT = 8192
_FRAME_RATE = 100
_FLOOR_NEPERS = 9.0

ClipFeatures = dict[str, np.ndarray]
"""Features of N clips: "statistics" (N, F), "chroma" (N, 2, 12), "repeats" (N, lags), "tempo" (N,) in bpm."""


def clip_features(wave: np.ndarray) -> dict[str, np.ndarray]:
    """The features of one clip, float32 (T,) at 24 kHz, at least 2 s: one row of `ClipFeatures`."""
    tempo = estimate_tempo(wave)
    return {
        "statistics": log_mel_statistics(wave),
        "chroma": chroma(wave),
        "repeats": onset_autocorrelation(wave, tempo),
        "tempo": np.asarray(tempo, np.float32),
    }


def log_mel_statistics(wave: np.ndarray) -> np.ndarray:
    """Statistics of a clip's log-mel spectrogram: float32 (T,) at 24 kHz, at least 2 s -> float32 (F,).

    Per mel band: mean, standard deviation, 10th and 90th percentile and mean absolute change between frames,
    relative to the mean level of the clip; and the strength of the amplitude modulation in 8 groups of bands.
    """
    level = _floored_log_mel(wave)
    relative = level - level.mean()
    low, high = np.percentile(relative, [10, 90], axis=0)
    change = np.abs(np.diff(relative, axis=0)).mean(axis=0)
    onsets = np.maximum(np.diff(relative, axis=0), 0.0).reshape(len(level) - 1, 8, BANDS // 8).mean(axis=2)
    onsets = onsets - onsets.mean(axis=0)
    times = np.arange(len(onsets)) / float(_FRAME_RATE)
    carriers = np.exp(-2j * np.pi * np.outer(MODULATIONS_HZ, times)) * np.hanning(len(times))
    norm = np.linalg.norm(onsets, axis=0) * np.sqrt(len(times)) + 1e-6
    modulation = np.abs(carriers @ onsets) / norm
    rows = (relative.mean(axis=0), relative.std(axis=0), low, high, change, modulation.ravel())
    return np.concatenate(rows).astype(np.float32)


def _floored_log_mel(wave: np.ndarray) -> np.ndarray:
    """Log-mel levels (frames at 100 Hz, bands) in nepers; what lies 80 dB below the peak is raised to that
    floor."""
    level = np.asarray(spectral.log_mel(jnp.asarray(wave[None]), n_mels=BANDS))[0]
    return np.maximum(level, level.max() - _FLOOR_NEPERS)


def chroma(wave: np.ndarray) -> np.ndarray:
    """Standardised strength of each pitch class, C first: float32 (2, 12), for 55 to 2000 Hz and for 55 to
    220 Hz."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (0, _FFT)), _FFT)[:: _FFT // 2]
    loudness = np.abs(np.fft.rfft(frames * np.hanning(_FFT).astype(np.float32), axis=1)) ** 0.5
    hertz = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
    pitch = np.rint(12 * np.log2(np.maximum(hertz, 1) / 440)).astype(int) + 9
    rows = []
    for highest in (2000, 220):
        in_range = (hertz >= 55) & (hertz <= highest)
        pitch_class = pitch[in_range] % 12
        total = np.bincount(pitch_class, loudness.mean(axis=0)[in_range], 12)
        row = total / np.bincount(pitch_class, minlength=12)
        rows.append((row - row.mean()) / (row.std() + 1e-6))
    return np.asarray(rows, np.float32)


def onset_autocorrelation(wave: np.ndarray, tempo_bpm: float) -> np.ndarray:
    """Autocorrelation of the onset strength at lags of `BEATS` beats, float32 (len(BEATS),)."""
    level = _floored_log_mel(wave)
    onsets = np.maximum(np.diff(level, axis=0), 0).mean(axis=1)
    onsets = onsets - onsets.mean()
    spectrum = np.abs(np.fft.rfft(onsets, 2 * len(onsets))) ** 2
    correlation = np.fft.irfft(spectrum)[: len(onsets)]
    normalised = correlation / max(correlation[0], 1e-9)
    lags = np.asarray(BEATS) * (60 * _FRAME_RATE) / max(tempo_bpm, 30.0)
    return np.interp(lags, np.arange(len(correlation)), normalised, right=0.0).astype(np.float32)


def estimate_tempo(wave: np.ndarray) -> float:
    """Tempo in bpm by librosa's beat tracker, for a clip float32 (T,) at 24 kHz; 0 if it finds no beat."""
    import librosa

    return float(np.atleast_1d(librosa.beat.beat_track(y=wave, sr=SAMPLE_RATE)[0])[0])


def is_same_tempo(estimate_bpm: float, tempo_bpm: float, tolerance: float = TEMPO_TOLERANCE) -> bool:
    """Whether the estimate is the tempo, its double or its half, within a relative tolerance."""
    return any(abs(estimate_bpm / (tempo_bpm * factor) - 1.0) <= tolerance for factor in (0.5, 1.0, 2.0))
