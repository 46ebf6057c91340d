"""Windows that cover a piece, and stitching their outputs."""

import numpy as np
import pytest

from melody_jax.data.features import stitch_windows, window_starts


def test_window_starts_cover_everything() -> None:
    assert window_starts(750, 256, 128) == [0, 128, 256, 384, 494]
    assert window_starts(256, 256, 64) == [0]
    assert window_starts(512, 256, 128) == [0, 128, 256]


@pytest.mark.parametrize("rate", [1, 2])
@pytest.mark.parametrize("length", [8, 13, 16, 27])
def test_stitch_takes_centres(length: int, rate: int) -> None:
    window = 8
    starts = window_starts(length, window, 4)
    rows = np.stack([np.arange(start * rate, (start + window) * rate) for start in starts])
    np.testing.assert_array_equal(stitch_windows(rows, starts, length), np.arange(length * rate))
    sources = stitch_windows(np.stack([np.full(window, start) for start in starts]), starts, length)
    for position, source in enumerate(sources):
        distances = [abs(position + 0.5 - start - window / 2) for start in starts]
        assert abs(position + 0.5 - source - window / 2) <= min(distances) + 1
