"""The studio's spectrograms: levels where they belong, bounded pictures, many threads."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from melody_jax.studio import spectrogram
from melody_jax.studio.spectrogram import log_levels, spectrogram_png


def sine(hz: float, seconds: float, rate: int, amplitude: float = 1.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100])
@pytest.mark.parametrize("hz", [60.0, 440.0, 3_000.0])
def test_a_sine_is_in_its_row_at_its_level(hz: float, rate: int) -> None:
    levels, edges, seconds = log_levels(sine(hz, 2, rate, 0.1), rate)
    middle = levels[:, levels.shape[1] // 2]
    row = int(middle.argmax())
    assert middle.max() == pytest.approx(-20, abs=1.5)
    assert edges[max(row - 1, 0)] <= hz <= edges[min(row + 2, len(edges) - 1)]
    assert seconds == pytest.approx(0.02)


def test_columns_of_long_sounds_are_bounded_and_lose_nothing() -> None:
    """A click of one frame is seen in a sound of which a column has several frames."""
    rate = 8_000
    clip = np.zeros(60 * rate, np.float32)
    clip[30 * rate] = 1
    levels, _, seconds = log_levels(clip, rate)
    assert levels.shape[1] <= spectrogram.COLUMNS
    assert levels.shape[1] * seconds == pytest.approx(60, abs=seconds)
    assert levels.max(axis=0).argmax() == pytest.approx(30 / seconds, abs=3)


def test_blocks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    clip = rng.normal(size=(8_000, 2)).astype(np.float32)
    whole = log_levels(clip, 8_000)[0]
    monkeypatch.setattr(spectrogram, "BLOCK", 7)
    np.testing.assert_allclose(log_levels(clip, 8_000)[0], whole)


@pytest.mark.parametrize("seconds", [1e-3, 0.5, 700])
@pytest.mark.parametrize("channels", [1, 2])
def test_pictures(seconds: float, channels: int) -> None:
    clip = np.repeat(sine(440, seconds, 4_000)[:, None], channels, axis=1)
    picture = Image.open(io.BytesIO(spectrogram_png(clip if channels > 1 else clip[:, 0], 4_000, 320, 160)))
    assert picture.size == (320, 160)
    assert picture.format == "PNG"


@pytest.mark.parametrize("width", [320, 800])
def test_the_plot_is_where_the_page_expects_it(width: int) -> None:
    """The page's playhead and regions are drawn over it; its labels fit beside it."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    picture = Image.open(io.BytesIO(spectrogram_png(noise, 8_000, width, 240))).convert("RGB")
    row = np.asarray(picture, int)[120]
    coloured = np.flatnonzero(np.ptp(row, axis=1) > 30)
    assert coloured.min() == pytest.approx(spectrogram.LEFT, abs=2)
    assert coloured.max() == pytest.approx(width - spectrogram.RIGHT, abs=2)
    border = np.asarray(picture.convert("L"))
    assert (border[:, 0] == 255).all()
    assert (border[-1] == 255).all()


def test_silence_is_dark_and_loud_noise_is_not() -> None:
    def brightness(clip: np.ndarray) -> float:
        picture = Image.open(io.BytesIO(spectrogram_png(clip, 8_000))).convert("L")
        return float(np.asarray(picture)[20:150, 150:600].mean())

    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    assert brightness(np.zeros(16_000, np.float32)) < 5
    assert brightness(noise) > 80


def test_any_thread_draws_the_same() -> None:
    clips = [sine(200 * i, 1, 8_000) for i in range(1, 5)]
    alone = [spectrogram_png(clip, 8_000) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda clip: spectrogram_png(clip, 8_000), clips)) == alone
    assert len(set(alone)) == 4
