"""What is wrong with a signal, on signals made to be wrong."""

import numpy as np
import pytest

from melody_jax.evaluation.signal import QUIETEST_LUFS, signal_metrics

TIMES = np.arange(48_000) / 24_000


def test_sine_and_noise() -> None:
    sine = (0.5 * np.sin(2 * np.pi * 997 * TIMES)).astype(np.float32)
    result = signal_metrics(sine)
    assert result["loudness_lufs"] == pytest.approx(-9.03, abs=0.1)  # BS.1770: 0 dBFS at 997 Hz is -3.01 LUFS
    assert result["peak_dbfs"] == pytest.approx(-6.02, abs=0.05)
    assert result["flatness"] < 0.001
    assert result["clipped"] == result["silent"] == 0
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    assert signal_metrics(noise)["flatness"] == pytest.approx(np.exp(-np.euler_gamma), abs=0.02)


def test_clipping_and_silence() -> None:
    loud = np.clip(2 * np.sin(2 * np.pi * 100 * TIMES), -1, 1).astype(np.float32)
    assert signal_metrics(loud)["clipped"] == pytest.approx(
        2 / 3, abs=0.02
    )  # beyond 30 degrees of each quarter
    half = np.where(TIMES < 1, 0.3 * np.sin(2 * np.pi * 440 * TIMES), 0).astype(np.float32)
    assert signal_metrics(half)["silent"] == pytest.approx(0.5, abs=0.06)
    assert signal_metrics(half)["longest_silence"] == pytest.approx(1.0)
    assert signal_metrics(loud)["longest_silence"] == 0
    nothing = signal_metrics(np.zeros(1000, np.float32))
    assert nothing["loudness_lufs"] == QUIETEST_LUFS
    assert nothing["silent"] == 1
    assert nothing["longest_silence"] == pytest.approx(0.1)
    assert nothing["flatness"] == 0
