"""STFT, its inverse and mel filters against scipy, closed forms and librosa."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from melody_jax import spectral
from melody_jax.errors import UserError


def noise(samples: int, seed: int = 0) -> jax.Array:
    return 0.3 * jax.random.normal(jax.random.key(seed), (2, samples))


@pytest.mark.parametrize(("n_fft", "hop", "win"), [(1024, 240, None), (256, 64, None), (512, 100, 400)])
def test_inverse_is_exact(n_fft: int, hop: int, win: int | None) -> None:
    audio = noise(hop * 31)
    spectrum = spectral.stft(audio, n_fft, hop, win)
    assert spectrum.shape == (2, 31, n_fft // 2 + 1)
    assert spectrum.dtype == jnp.complex64
    np.testing.assert_allclose(spectral.istft(spectrum, n_fft, hop, win), audio, atol=1e-5)


def test_framing_matches_scipy() -> None:
    """Unpadded frames against scipy's transform, which scales by the window's sum."""
    audio = noise(4096)
    ours = spectral.stft(audio, 512, 128, center=False)
    window = scipy.signal.get_window("hann", 512)
    _, _, theirs = scipy.signal.stft(
        audio, window=window, nperseg=512, noverlap=384, boundary=None, padded=False
    )
    np.testing.assert_allclose(ours, np.moveaxis(theirs, 1, 2) * window.sum(), atol=1e-3)


def test_sine_has_its_frequency_level_and_phase() -> None:
    """Frame i is centred on i * hop + hop / 2: the phase there is that of the sine."""
    n_fft, hop, k, amplitude = 1024, 240, 40, 0.5
    time = np.arange(hop * 20)
    audio = jnp.asarray(amplitude * np.cos(2 * np.pi * k * time / n_fft), jnp.float32)[None]
    frame = np.asarray(spectral.stft(audio, n_fft, hop))[0, 10]
    assert np.argmax(np.abs(frame)) == k
    assert abs(frame[k]) == pytest.approx(amplitude * n_fft / 4, rel=1e-3)
    first = 10 * hop - (n_fft - hop) // 2
    assert np.angle(frame[k] * np.exp(-2j * np.pi * k * first / n_fft)) == pytest.approx(0, abs=1e-3)


def test_tail_that_fills_no_hop_is_left_out() -> None:
    assert spectral.stft(noise(1000), 256, 64).shape[1] == 1000 // 64


def test_filters_match_librosa() -> None:
    filters = pytest.importorskip("librosa.filters").mel(sr=24_000, n_fft=1024, n_mels=80)
    np.testing.assert_allclose(spectral.mel_filterbank(80, 1024), filters.T, atol=1e-7)


def test_filters_have_unit_area() -> None:
    """Wide filters, where the bins resolve the triangle: sum times the bins' spacing is one."""
    areas = spectral.mel_filterbank(40, 2048).sum(0) * 24_000 / 2048
    np.testing.assert_allclose(areas[-20:], 1, rtol=0.02)


def test_silence_has_finite_gradients() -> None:
    gradient = jax.grad(lambda x: jnp.mean(spectral.log_mel(x)) + jnp.mean(spectral.magnitude(x + 0j)))(
        jnp.zeros((1, 4800))
    )
    assert bool(jnp.all(jnp.isfinite(gradient)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: spectral.stft(noise(50), 256, 64),
        lambda: spectral.stft(noise(500), 256, 64, win=300),
        lambda: spectral.istft(spectral.stft(noise(5120), 256, 256, win=64), 256, 256, win=64),
        lambda: spectral.mel_filterbank(80, 1024, fmin=100, fmax=13_000),
    ],
)
def test_bad_sizes_are_refused(call) -> None:
    with pytest.raises(UserError):
        call()


def griffin_lim(magnitudes: jnp.ndarray, steps: int) -> jnp.ndarray:
    return spectral.istft(spectral.griffin_lim_spectrum(magnitudes, 1024, 240, steps), 1024, 240)


def test_griffin_lim_finds_a_phase_that_fits():
    time = np.arange(24_000) / 24_000
    audio = jnp.asarray((0.3 * np.sin(2 * np.pi * 443 * time) * np.exp(-3 * time))[None], jnp.float32)
    size = jnp.abs(spectral.stft(audio, 1024, 240))

    def misfit(steps: int) -> float:
        waveform = griffin_lim(size, steps)
        assert waveform.shape == audio.shape
        rebuilt = jnp.abs(spectral.stft(waveform, 1024, 240))
        return float(jnp.linalg.norm(rebuilt - size) / jnp.linalg.norm(size))

    random, sixteen = misfit(0), misfit(16)
    assert random > 0.3
    assert sixteen < 0.15
    np.testing.assert_array_equal(
        griffin_lim(size, 3),
        griffin_lim(jnp.tile(size, (2, 1, 1)), 3)[1:],
    )
    assert np.isfinite(griffin_lim(jnp.zeros((1, 8, 513)), 4)).all()


def test_tempogram_peaks_at_the_beat_and_its_multiples() -> None:
    """Attacks every 20 frames in the low half of the band and every 30 in the high half, at any level."""
    frames = np.zeros((2, 400, 8), np.float32)
    frames[:, 5::20, :4] = 2.0
    frames[:, 7::30, 4:] = 1.0
    frames[1] *= 3.0
    low, high = np.asarray(spectral.tempogram(jnp.asarray(frames), 2, (8, 100)))[0]
    assert 8 + low.argmax() == 20
    assert 8 + high.argmax() == 30
    assert low[40 - 8] > 0.8 > 0.2 > abs(low[30 - 8])
    np.testing.assert_allclose(*spectral.tempogram(jnp.asarray(frames), 2, (8, 100)), atol=1e-4)


def test_tempogram_of_silence_is_zero_and_has_a_gradient() -> None:
    value, gradient = jax.value_and_grad(lambda x: spectral.tempogram(x, 1, (4, 20)).sum())(
        jnp.zeros((1, 64, 8))
    )
    assert value == 0.0
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize(("up", "down"), [(2, 3), (2, 1), (1, 3)])
def test_resample_keeps_what_fits_the_lower_rate(up: int, down: int) -> None:
    """Tones below the lower Nyquist frequency come through, tones above it do not."""
    time = np.arange(24_000) / 24_000
    limit = 12_000 * min(1.0, up / down)
    for share in (0.1, 0.5, 0.85):
        low = np.sin(2 * np.pi * share * limit * time)[None]
        resampled = np.asarray(spectral.resample(jnp.asarray(low, jnp.float32), up, down))[0]
        expected = np.sin(2 * np.pi * share * limit * np.arange(len(resampled)) * down / up / 24_000)
        assert len(resampled) == 24_000 * up // down
        np.testing.assert_allclose(resampled[200:-200], expected[200:-200], atol=2e-3)
    if down > up:
        high = jnp.asarray(np.sin(2 * np.pi * 1.15 * limit * time)[None], jnp.float32)
        assert float(jnp.abs(spectral.resample(high, up, down)[:, 200:-200]).max()) < 2e-3
