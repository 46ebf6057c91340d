"""Windows over a piece, and putting what they gave together again."""

import numpy as np
import pytest

from melody_jax.data.features import starts, stitch


def test_starts_cover_everything() -> None:
    assert starts(750, 256, 128) == [0, 128, 256, 384, 494]
    assert starts(256, 256, 64) == [0]
    assert starts(512, 256, 128) == [0, 128, 256]


@pytest.mark.parametrize("rate", [1, 2])
@pytest.mark.parametrize("length", [8, 13, 16, 27])
def test_stitch_takes_centres(length: int, rate: int) -> None:
    at, window = starts(length, 8, 4), 8
    rows = np.stack([np.arange(a * rate, (a + window) * rate) for a in at])
    np.testing.assert_array_equal(stitch(rows, at, length), np.arange(length * rate))
    marked = stitch(np.stack([np.full(window, a) for a in at]), at, length)
    for position, start in enumerate(marked):
        distances = [abs(position + 0.5 - a - window / 2) for a in at]
        assert abs(position + 0.5 - start - window / 2) <= min(distances) + 1
