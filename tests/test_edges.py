"""The ends of a clip are zero, whatever the parts it is faded in."""

import numpy as np
import pytest

from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.sampling.edges import FADE, fade_in, fade_out

LENGTH = round(FADE * SAMPLE_RATE)


def faded(samples: int, cuts: list[int]) -> np.ndarray:
    """A constant of `samples` samples, faded in the parts between the cuts."""
    mono = np.ones(samples, np.float32)
    stereo = np.ones((samples, 2), np.float32)
    for wave in (mono, stereo):
        for begin, end in zip([0, *cuts], [*cuts, samples], strict=True):
            fade_in(wave[begin:end], SAMPLE_RATE, begin)
            fade_out(wave[begin:end], SAMPLE_RATE, samples - begin)
    np.testing.assert_array_equal(stereo, np.stack([mono, mono], axis=1))
    return mono


@pytest.mark.parametrize("samples", [1, 7, LENGTH, LENGTH + 3, 2 * LENGTH, 1_000])
def test_both_ends_are_zero_and_the_middle_stays(samples: int) -> None:
    wave = faded(samples, [])
    assert wave[0] == wave[-1] == 0
    np.testing.assert_array_equal(wave, wave[::-1])
    np.testing.assert_array_equal(wave[LENGTH:-LENGTH], 1)
    assert (np.diff(wave[: samples // 2]) > 0).sum() == max(min(samples // 2, LENGTH + 1) - 1, 0)


@pytest.mark.parametrize("cuts", [[1], [50, 60], [119, 121], [880, 990], [500]])
def test_parts_are_faded_as_the_whole(cuts: list[int]) -> None:
    np.testing.assert_array_equal(faded(1_000, cuts), faded(1_000, []))
