"""Fidelity to an original, on pairs of signals whose right value is known."""

import numpy as np
import pytest

from melody_jax.audio_format import AudioFormat
from melody_jax.errors import UserError
from melody_jax.evaluation import fidelity
from melody_jax.evaluation.fidelity import BANDS
from melody_jax.evaluation.sound import Sound

SAMPLES = 5 * 24_000
TIME = np.arange(SAMPLES) / 24_000


def tone(hz: float, amplitude: float = 0.3) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hz * TIME)).astype(np.float32)


def shifted(hz: float, cents: float) -> float:
    return hz * 2 ** (cents / 1200)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, SAMPLES).astype(np.float32)


@pytest.mark.parametrize("hz", [41.2, 55.0, 97.3, 220.0])
def test_bass_agrees_within_half_a_semitone(hz: float) -> None:
    for cents, agreement in ((0, 1), (40, 1), (-40, 1), (60, 0), (-60, 0), (1200, 0)):
        assert fidelity.bass_agreement(tone(shifted(hz, cents)), tone(hz)) == agreement, cents
    np.testing.assert_allclose(fidelity.bass_pitch(tone(hz)), hz, rtol=3e-3)


def test_bass_agrees_where_the_original_has_a_note() -> None:
    """A note in the first half only, and the clip follows it in the first quarter only."""
    half = np.where(TIME < 2.5, tone(80), 0).astype(np.float32)
    quarter = np.where(TIME < 1.25, tone(80), tone(120)).astype(np.float32)
    assert fidelity.bass_agreement(quarter, half) == pytest.approx(0.5, abs=0.06)
    assert fidelity.bass_agreement(half, half) == 1
    assert fidelity.bass_agreement(np.zeros_like(half), half) == 0


def test_louder_treble_does_not_hide_the_bass() -> None:
    assert fidelity.bass_agreement(tone(60, 0.02) + tone(1_000), tone(60) + tone(500)) == 1


@pytest.mark.parametrize(
    "original",
    [np.zeros(SAMPLES, np.float32), noise(), tone(300), tone(30), tone(80, 0.001)],
    ids=["silence", "noise", "above the range", "below the range", "too quiet"],
)
def test_no_note_in_the_original(original: np.ndarray) -> None:
    agreement = fidelity.bass_agreement(tone(80), original)
    assert np.isnan(agreement)
    assert fidelity.steady_bass(original) == 0


def test_steady_bass_counts_frames_on_the_same_pitch() -> None:
    assert fidelity.steady_bass(tone(80)) == 1
    notes = np.concatenate([tone(hz)[:1_200] for hz in np.random.default_rng(0).uniform(50, 240, 100)])
    assert fidelity.steady_bass(notes) < 0.3  # another pitch in every frame
    assert fidelity.steady_bass(tone(80)[:9_000]) == 0  # a single frame


@pytest.mark.parametrize("gain_db", [-2.0, 3.5])
def test_a_gain_reads_as_itself(gain_db: float) -> None:
    louder = noise() * np.float32(10 ** (gain_db / 20))
    assert fidelity.level_difference(louder, noise()) == pytest.approx(gain_db, abs=1e-3)
    errors = fidelity.band_errors(louder, noise())
    assert np.isnan(errors.pop("12-20k Hz"))
    for error in errors.values():
        assert error == pytest.approx(abs(gain_db), abs=1e-2)


@pytest.mark.parametrize("band", BANDS)
def test_errors_are_those_of_their_band(band: str) -> None:
    """6 dB less in one band alone, at 48 kHz."""
    low, high = BANDS[band]
    spectrum = np.fft.rfft(noise())
    frequencies = np.fft.rfftfreq(SAMPLES, 1 / 48_000)
    spectrum[(frequencies >= low) & (frequencies < high)] /= 2
    errors = fidelity.band_errors(np.fft.irfft(spectrum, SAMPLES), noise(), 48_000)
    assert errors.pop(band) == pytest.approx(6.02, abs=0.6)
    assert max(errors.values()) < 0.6


def test_silence_has_no_error_and_the_floor_bounds_it() -> None:
    silence = np.zeros(SAMPLES, np.float32)
    assert set(fidelity.band_errors(silence, silence, 48_000).values()) == {0.0}
    assert np.isnan(fidelity.level_difference(noise(), silence))
    assert fidelity.band_errors(silence, 1e-5 * noise())["1-4k Hz"] == 0.0  # below -80 dB
    window = np.hanning(8_192)
    power_db = 10 * np.log10(0.1**2 * (window**2).sum() * 4 / window.sum() ** 2)  # of a bin of the noise
    mean_db = power_db - 10 * np.euler_gamma / np.log(10)
    assert fidelity.band_errors(silence, noise())["1-4k Hz"] == pytest.approx(mean_db + 80, abs=0.3)


def test_measures_of_a_clip_that_falls_silent() -> None:
    original = Sound(tone(80))
    cut = Sound(np.where(TIME < 2.9, original.samples, 0).astype(np.float32))
    values = fidelity.measures(cut, original, aligned=True)
    assert list(values) == list(fidelity.TITLES)
    assert values["fallen_silent"] == 1
    assert values["level_difference"] == pytest.approx(10 * np.log10(2.9 / 5), abs=0.01)
    later = Sound(np.where(TIME < 3.1, original.samples, 0).astype(np.float32))
    assert fidelity.measures(later, original, True)["fallen_silent"] == 0
    apart_in_time = fidelity.measures(cut, original, aligned=False)
    assert {name for name, value in apart_in_time.items() if np.isnan(value)} == {
        "bass_agreement",
        "note_agreement",
        "attack_agreement",
        *BANDS,
        "side_error",
        "width_difference",
    }


def test_measures_of_the_stereo_image() -> None:
    """The clip has half the width; everything in the middle is right."""
    form = AudioFormat(sample_rate=48_000, channels=2)
    middle, side = noise(1), 0.5 * noise(2)
    original, clip = (
        Sound(np.stack([middle + width * side, middle - width * side], axis=1), form) for width in (1, 0.5)
    )
    values = fidelity.measures(clip, original, aligned=True)
    assert values["side_error"] == pytest.approx(6.02, abs=0.2)  # some bins lie on the floor
    assert values["width_difference"] == pytest.approx(-6.02, abs=0.01)
    assert max(values[band] for band in BANDS) < 0.01
    assert values["level_difference"] == pytest.approx(10 * np.log10(1.0625 / 1.25), abs=0.05)
    assert values["note_agreement"] == 1 or np.isnan(values["note_agreement"])
    apart_in_time = fidelity.measures(clip, original, aligned=False)
    assert np.isnan(apart_in_time["side_error"])
    assert apart_in_time["width_difference"] == values["width_difference"]
    with pytest.raises(UserError, match="48 kHz stereo, its original 24 kHz mono"):
        fidelity.measures(clip, Sound(middle), aligned=True)


def test_summary_and_table() -> None:
    columns = {"bass_agreement": np.asarray([1.0, np.nan, 0.5]), "level_difference": np.full(3, np.nan)}
    summary = fidelity.summarise(columns)
    assert summary["bass_agreement"].value == 0.75
    assert "level_difference" not in summary
    table = fidelity.markdown({"vae": summary, "truth": {"steady_bass": summary["bass_agreement"]}})
    assert "| entry stage | bass agreement | steady bass |" in table
    assert "| vae | 0.75 |  |" in table


def test_bad_pairs_are_refused() -> None:
    with pytest.raises(UserError, match=r"shapes \(120000,\) and \(119999,\)"):
        fidelity.bass_agreement(noise(), noise()[1:])
    with pytest.raises(UserError, match=r"shape \(100,\): it must be \(T,\), T at least 8192"):
        fidelity.bass_pitch(noise()[:100])
