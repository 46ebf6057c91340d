"""The codec with two windows: levels across the crossover, bass that stays in tune, and what it refuses."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.errors import UserError
from melody_jax.models import stft_synthesis
from melody_jax.models.low_band import share
from melody_jax.models.stft_config import StftCodecConfig

CONFIG = StftCodecConfig(low_hz=1_000.0)
SAMPLES = 240 * 500


def tone_batch(frequencies: list[float]) -> jax.Array:
    time = np.arange(SAMPLES) / 24_000
    return jnp.asarray([0.3 * np.sin(2 * np.pi * hz * time + 1) for hz in frequencies], jnp.float32)


def searched(config: StftCodecConfig, audio: jax.Array) -> np.ndarray:
    """Audio from its own magnitudes alone, without the ends."""
    size = stft_synthesis.magnitudes(stft_synthesis.spectra(config, audio))
    return np.asarray(jax.jit(partial(stft_synthesis.synthesise, config))(size))[:, 12_000:-12_000]


def level(audio: np.ndarray | jax.Array) -> np.ndarray:
    return 10 * np.log10(np.mean(np.square(audio), axis=-1))


def test_no_dip_and_no_doubling_at_the_crossover() -> None:
    audio = tone_batch([hz * 1_000 for hz in (0.3, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 3.0)])
    np.testing.assert_allclose(level(searched(CONFIG, audio)), level(audio), atol=0.5)


@pytest.mark.parametrize("low_hz", [400.0, 1_000.0, 2_500.0])
def test_with_the_true_phase_it_is_the_identity(low_hz: float) -> None:
    """Analysis and synthesis of both windows, crossed over."""
    config = replace(CONFIG, low_hz=low_hz)
    audio = 0.3 * jax.random.normal(jax.random.key(0), (2, SAMPLES))
    spectra = stft_synthesis.spectra(config, audio)
    size = stft_synthesis.magnitudes(spectra)
    rebuilt = stft_synthesis.synthesise_with_phase(config, size, spectra)
    np.testing.assert_allclose(rebuilt[:, 4_096:-4_096], audio[:, 4_096:-4_096], atol=1e-3)
    without_low = stft_synthesis.synthesise_with_phase(config, size._replace(low=0 * size.low), spectra)
    inner = np.asarray(without_low[0, 4_096:-4_096])
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner))))
    frequencies = np.fft.rfftfreq(len(inner), 1 / 24_000)
    below = spectrum[frequencies < 0.8 * low_hz].mean()
    assert below < 0.01 * spectrum[frequencies > 1.2 * low_hz].mean()  # the low band alone writes there


def test_the_low_band_separates_neighbouring_bass_notes() -> None:
    """Two tones a fifth apart that share a bin of the short window: the long one writes both, and nothing between."""
    audio = tone_batch([55.0, 82.4]).sum(0, keepdims=True)

    def valley(config: StftCodecConfig) -> float:
        """Strongest component between the tones relative to the weaker tone."""
        wave = searched(config, audio)[0]
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
        frequencies = np.fft.rfftfreq(len(wave), 1 / 24_000)
        near = lambda hz, width: spectrum[np.abs(frequencies - hz) < width].max()  # noqa: E731
        return near(68.7, 8) / min(near(55.0, 2), near(82.4, 2))

    assert valley(CONFIG) < 0.1 < 0.2 < valley(StftCodecConfig())


def test_items_do_not_see_each_other() -> None:
    audio = jnp.concatenate([tone_batch([97.0]), 0.2 * jax.random.normal(jax.random.key(1), (2, SAMPLES))])
    np.testing.assert_allclose(searched(CONFIG, audio)[1:2], searched(CONFIG, audio[1:2]), atol=1e-4)


def test_silence_stays_silent() -> None:
    assert float(np.abs(searched(CONFIG, jnp.zeros((1, SAMPLES)))).max()) < 1e-4


def test_the_search_runs_at_the_lowest_rate_that_fits() -> None:
    assert CONFIG.low_band.decimation == 8  # 3 kHz for a band that ends at 1,150 Hz
    assert replace(CONFIG, low_hz=2_500.0).low_band.decimation == 2
    assert replace(CONFIG, low_hz=6_000.0).low_band.decimation == 1
    assert replace(CONFIG, low_window=4_094).low_band.decimation == 1  # no divisor leaves the frames in place


def test_shares_fall_from_one_to_zero_around_the_crossover() -> None:
    weights = share(1_000.0, 1024, 24_000)
    hertz = np.arange(513) * 24_000 / 1024
    assert (weights[hertz <= 850] == 1).all()
    assert (weights[hertz >= 1150] == 0).all()
    assert (np.diff(weights) <= 0).all()
    assert np.interp(1_000, hertz, weights) == pytest.approx(0.5, abs=0.01)
    assert CONFIG.first_bin == (hertz <= 850).sum()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low_hz": -1.0}, "low_hz -1: with n_fft 1024 it must be from 156 to 10435, or 0"),
        ({"low_hz": 100.0}, "low_hz 100: with n_fft 1024 it must be from 156 to 10435, or 0"),
        ({"low_hz": float("nan")}, "low_hz nan"),
        ({"low_window": 1024}, r"low_window 1024: it must be even and above n_fft \(1024\)"),
        ({"low_window": 4095}, "low_window 4095"),
        ({"low_steps": -1}, "low_steps -1: it must be at least 0"),
        ({"phase": True}, "low_hz needs phase=False"),
    ],
)
def test_bad_shapes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **fields)
