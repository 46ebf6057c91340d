"""Fades at the ends of a clip: nothing precedes its first sample and nothing follows its last, so both are zero.

The networks make a stretch of music that begins and ends in mid-wave, which sounds like a click.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float32

from melody_jax.audio import per_sample

FADE = 0.005
"""Length of a fade, seconds."""


def fade_in(wave: Float32[np.ndarray, " T *C"], sample_rate: int, begin: int = 0) -> None:
    """Fades in the clip's first samples, in place. The wave begins at sample `begin` of the clip."""
    rise = _rise(sample_rate)[begin : begin + len(wave)]
    wave[: len(rise)] *= per_sample(rise, wave)


def fade_out(wave: Float32[np.ndarray, " T *C"], sample_rate: int, remaining: int | None = None) -> None:
    """Fades out the clip's last samples, in place.

    remaining: samples from the wave's beginning to the clip's end; None: the wave ends with the clip.
    """
    end = len(wave) if remaining is None else remaining
    fall = _rise(sample_rate)[::-1]
    first = max(end - len(fall), 0)
    last = min(end, len(wave))
    if first < last:
        wave[first:last] *= per_sample(fall[len(fall) - end + first :][: last - first], wave)


def fade_ends(wave: Float32[np.ndarray, " T *C"], sample_rate: int) -> None:
    """Fades in and out a whole clip, in place."""
    fade_in(wave, sample_rate)
    fade_out(wave, sample_rate)


def faded(
    parts: Iterable[Float32[np.ndarray, " B _ *C"]], sample_rate: int, samples: int | None
) -> Iterator[Float32[np.ndarray, " B _ *C"]]:
    """The consecutive parts of clips with their ends faded; `samples` is their length, None if they are endless."""
    begin = 0
    for part in parts:
        for row in part:
            fade_in(row, sample_rate, begin)
            if samples is not None:
                fade_out(row, sample_rate, samples - begin)
        begin += part.shape[1]
        yield part


def _rise(sample_rate: int) -> np.ndarray:
    """The gain of a fade's samples, from 0 towards 1."""
    count = round(FADE * sample_rate)
    return (np.sin(np.linspace(0, np.pi / 2, count, endpoint=False)) ** 2).astype(np.float32)
