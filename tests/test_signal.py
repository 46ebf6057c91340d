"""What is wrong with a signal, on signals made to be wrong."""

import numpy as np
import pytest

from melody_jax.audio_format import AudioFormat
from melody_jax.evaluation.signal import QUIETEST_LUFS, signal_metrics
from melody_jax.evaluation.sound import Sound
from melody_jax.evaluation.stereo import STEREO

TIMES = np.arange(48_000) / 24_000


def test_sine_and_noise() -> None:
    sine = (0.5 * np.sin(2 * np.pi * 997 * TIMES)).astype(np.float32)
    result = signal_metrics(Sound(sine))
    assert result["loudness_lufs"] == pytest.approx(-9.03, abs=0.1)  # BS.1770: 0 dBFS at 997 Hz is -3.01 LUFS
    assert result["peak_dbfs"] == pytest.approx(-6.02, abs=0.05)
    assert result["flatness"] < 0.001
    assert result["clipped"] == result["silent"] == 0
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    assert signal_metrics(Sound(noise))["flatness"] == pytest.approx(np.exp(-np.euler_gamma), abs=0.02)


def test_clipping_and_silence() -> None:
    loud = np.clip(2 * np.sin(2 * np.pi * 100 * TIMES), -1, 1).astype(np.float32)
    assert signal_metrics(Sound(loud))["clipped"] == pytest.approx(
        2 / 3, abs=0.02
    )  # beyond 30 degrees of each quarter
    half = np.where(TIMES < 1, 0.3 * np.sin(2 * np.pi * 440 * TIMES), 0).astype(np.float32)
    assert signal_metrics(Sound(half))["silent"] == pytest.approx(0.5, abs=0.06)
    assert signal_metrics(Sound(half))["longest_silence"] == pytest.approx(1.0)
    assert signal_metrics(Sound(loud))["longest_silence"] == 0
    nothing = signal_metrics(Sound(np.zeros(1000, np.float32)))
    assert nothing["loudness_lufs"] == QUIETEST_LUFS
    assert nothing["silent"] == 1
    assert nothing["longest_silence"] == pytest.approx(0.1)
    assert nothing["flatness"] == 0


def test_the_stereo_image() -> None:
    form = AudioFormat(sample_rate=48_000, channels=2)
    rng = np.random.default_rng(0)
    left, other = rng.normal(0, 0.1, (2, 96_000)).astype(np.float32)

    def image(right: np.ndarray) -> list[float]:
        values = signal_metrics(Sound(np.stack([left, right], axis=1), form))
        return [values[name] for name in STEREO]

    assert image(left) == pytest.approx([-100, 1, 0, 0], abs=1e-4)
    assert image(-left) == pytest.approx([100, -1, 0, -60], abs=1e-4)
    assert image(other) == pytest.approx([0, 0, 0, -3.01], abs=0.1)
    assert image(0 * left) == pytest.approx([0, 0, 100, -3.01], abs=0.01)
    assert image(0.5 * left)[2] == pytest.approx(6.02, abs=0.01)
    assert all(np.isnan(signal_metrics(Sound(left))[name]) for name in STEREO)
    silence = signal_metrics(Sound(np.zeros((96_000, 2), np.float32), form))
    assert all(np.isnan(silence[name]) for name in STEREO)
    both = signal_metrics(Sound(np.stack([left, left], axis=1), form))["loudness_lufs"]
    alone = signal_metrics(Sound(left, AudioFormat(sample_rate=48_000)))["loudness_lufs"]
    assert both - alone == pytest.approx(3.01, abs=0.01)
