"""Attacks and notes of signals that have known ones."""

import numpy as np
import pytest

from melody_jax.evaluation import events, fidelity

SAMPLES = 4 * 24_000
TIME = np.arange(SAMPLES) / 24_000


def plucks(seconds: list[float], hz: float = 330.0) -> np.ndarray:
    """Decaying tones that begin at these times."""
    wave = np.zeros(SAMPLES)
    for start in seconds:
        after = np.maximum(TIME - start, 0)
        wave += np.where(start <= TIME, 0.3 * np.exp(-6 * after) * np.sin(2 * np.pi * hz * after), 0)
    return wave.astype(np.float32)


def chord(notes: list[int]) -> np.ndarray:
    return sum(0.1 * np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * TIME) for note in notes).astype(
        np.float32
    )


def test_attacks_are_found_where_they_are() -> None:
    times = [0.5, 1.0, 1.7, 3.0]
    np.testing.assert_allclose(events.attacks(plucks(times)) / 100, times, atol=0.03)
    assert len(events.attacks(chord([60]))) <= 1  # its own beginning at most
    assert len(events.attacks(np.zeros(SAMPLES, np.float32))) == 0


@pytest.mark.parametrize(
    ("times", "agreement"),
    [
        ([0.5, 1.0, 1.7, 3.0], 1.0),
        ([0.53, 1.03, 1.67, 3.0], 1.0),
        ([0.5, 1.0], 2 * 2 / 6),
        ([0.7, 1.3, 2.2, 3.4], 0.0),
        ([0.5, 1.0, 1.7, 2.3, 3.0], 2 * 4 / 9),
        ([], 0.0),
    ],
)
def test_attack_agreement_is_an_f1_score(times: list[float], agreement: float) -> None:
    original = plucks([0.5, 1.0, 1.7, 3.0])
    assert events.attack_agreement(plucks(times), original) == pytest.approx(agreement)


def test_an_attack_matches_once() -> None:
    """Two attacks 80 ms apart cannot both be the original's one."""
    assert events.attack_agreement(plucks([0.96, 1.04]), plucks([1.0])) == pytest.approx(2 / 3)


def test_no_attacks_at_all() -> None:
    silence = np.zeros(SAMPLES, np.float32)
    assert np.isnan(events.attack_agreement(silence, silence))
    assert np.isnan(events.note_agreement(fidelity.levels(silence), fidelity.levels(silence)))


@pytest.mark.parametrize("pitches", [[45], [60, 64, 67], [48, 55, 72, 88]])
def test_notes_are_found_by_pitch(pitches: list[int]) -> None:
    sounding = events.notes(fidelity.levels(chord(pitches)))
    expected = np.isin(events.NOTES, pitches)
    np.testing.assert_array_equal(sounding, np.broadcast_to(expected, sounding.shape))


def test_note_agreement_is_an_f1_score() -> None:
    levels = {name: fidelity.levels(chord(pitches)) for name, pitches in
              {"major": [60, 64, 67], "minor": [60, 63, 67], "other": [61, 65, 70]}.items()}  # fmt: skip
    assert events.note_agreement(levels["major"], levels["major"]) == 1
    assert events.note_agreement(levels["minor"], levels["major"]) == pytest.approx(2 / 3)
    assert events.note_agreement(levels["other"], levels["major"]) == 0


def test_noise_has_hardly_a_note() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLES).astype(np.float32)
    assert events.notes(fidelity.levels(noise)).mean() < 0.02
