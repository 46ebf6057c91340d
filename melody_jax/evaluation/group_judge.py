"""A judge of what a clip is: log-mel statistics and a small classifier, trained on composed audio only.

What conditions the model must not judge it, so nothing here is shared with MuLan or the semantic tokenizer: the
features are fixed statistics of a log-mel spectrogram, the classifier is scikit-learn's.
"""

import jax.numpy as jnp
import numpy as np
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from melody_jax import spectral

BANDS = 64
MODULATIONS_HZ = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0)


def log_mel_statistics(wave: np.ndarray) -> np.ndarray:
    """Statistics of one clip: waveform float32 (T,) at 24 kHz, at least 2 s -> float32 (F,).

    Per mel band: mean, standard deviation, 10th and 90th percentile and mean absolute change between frames, all
    relative to the clip's own mean level, and the strength of its amplitude modulation in 8 groups of bands.
    """
    level = np.asarray(spectral.log_mel(jnp.asarray(wave[None]), n_mels=BANDS))[
        0
    ]  # (frames at 100 Hz, bands)
    level = np.maximum(
        level, level.max() - 9.0
    )  # silence has no colour: what lies 80 dB below the peak is floor
    relative = level - level.mean()
    low, high = np.percentile(relative, [10, 90], axis=0)
    change = np.abs(np.diff(relative, axis=0)).mean(axis=0)
    rising = np.maximum(np.diff(relative, axis=0), 0.0).reshape(len(level) - 1, 8, BANDS // 8).mean(axis=2)
    rising = rising - rising.mean(axis=0)
    times = np.arange(len(rising)) / 100.0
    waves = np.exp(-2j * np.pi * np.outer(MODULATIONS_HZ, times)) * np.hanning(len(times))
    modulation = np.abs(waves @ rising) / (np.linalg.norm(rising, axis=0) * np.sqrt(len(times)) + 1e-6)
    rows = (relative.mean(axis=0), relative.std(axis=0), low, high, change, modulation.ravel())
    return np.concatenate(rows).astype(np.float32)


def train(features: np.ndarray, groups: np.ndarray, seed: int = 0) -> Pipeline:
    """A classifier from `log_mel_statistics` (N, F) to group indices (N,)."""
    network = MLPClassifier(
        (256,), alpha=1.0, early_stopping=True, n_iter_no_change=20, max_iter=400, random_state=seed
    )
    return make_pipeline(StandardScaler(), network).fit(features, groups)


def tempo(wave: np.ndarray) -> float:
    """Beats per minute that librosa's beat tracker finds in a clip float32 (T,) at 24 kHz; 0 if it finds none."""
    import librosa

    return float(np.atleast_1d(librosa.beat.beat_track(y=wave, sr=24000)[0])[0])


def same_tempo(found: float, tempo_bpm: float, tolerance: float = 0.08) -> bool:
    """Whether `found` is `tempo_bpm`, its double or its half, within the relative tolerance."""
    return any(abs(found / (tempo_bpm * factor) - 1.0) <= tolerance for factor in (0.5, 1.0, 2.0))


def tempo_matches(wave: np.ndarray, tempo_bpm: float) -> bool:
    """Whether the `tempo` of a clip is the `same_tempo`."""
    return same_tempo(tempo(wave), tempo_bpm)
