"""Synthesised rooms: impulse responses and their convolution with what is played in them."""

import functools
from itertools import pairwise

import numpy as np

from melody_jax.composer import dsp
from melody_jax.composer.clock import Clock
from melody_jax.composer.stereo import LEFT
from melody_jax.errors import UserError

ROOM_VARIANTS = 8

ROOMS = {
    "studio": (0.35, 0.22, 0.004, 0.5),
    "room": (0.7, 0.4, 0.009, 0.45),
    "hall": (2.2, 1.1, 0.024, 0.25),
    "plate": (1.5, 1.2, 0.002, 0.05),
}
"""Room -> reverberation time at low and at high frequencies (s), pre-delay (s), energy fraction of early reflections.
"""
_BANDS = (120.0, 700.0, 2200.0, 5000.0)
"""Lower edges of the bands of a reverberation, Hz."""


@functools.lru_cache(maxsize=2 * len(ROOMS) * ROOM_VARIANTS)
def room_response(clock: Clock, room: str, variant: int, side: int = LEFT) -> np.ndarray:
    """Impulse response of a room without the direct sound, float32, with unit energy.

    Early reflections are followed by noise in four bands, the higher ones with a shorter decay. The sides of stereo
    have reflections and noise of their own; mono has the left side's. Raises `UserError` for unknown rooms.
    """
    if room not in ROOMS:
        raise UserError(f"{room!r} is not a room; use one of dry, {', '.join(ROOMS)}")
    low, high, before, early = ROOMS[room]
    seed = [sorted(ROOMS).index(room), variant]
    rng = np.random.default_rng(seed)
    size = 2 ** rng.uniform(-0.35, 0.35)
    if side != LEFT:
        rng = np.random.default_rng([*seed, side])
    tail = _late(clock, rng, (low, high), size, clock.samples(0.9 * low * size))
    clock.attack(tail, 0.004 if room == "plate" else 0.3 * before + 0.002)
    response = np.zeros(len(tail) + clock.samples(0.06 * size), np.float32)
    dsp.add_at(response, clock.samples(before), tail / np.sqrt((tail**2).sum()), np.sqrt(1 - early))
    places = np.sort(rng.uniform(0.15, 1.6, 9)) * (before + 0.006) * size
    taps = rng.choice([-1.0, 1.0], 9) * np.exp(-places / (before + 0.01))
    taps *= np.sqrt(early / (taps**2).sum())
    for place, tap in zip(places, taps, strict=True):
        response[clock.samples(place)] += tap
    return response / np.sqrt((response**2).sum())


def _late(
    clock: Clock, rng: np.random.Generator, falls: tuple[float, float], size: float, count: int
) -> np.ndarray:
    """Noise (count,) that falls by 60 dB in `size` times `falls` s at low and at high frequencies."""
    low, high = falls
    tail = np.zeros(count, np.float32)
    for band, (bottom, top) in enumerate(pairwise((*_BANDS, clock.highest(10_000.0)))):
        if top <= bottom:  # below 12 kHz, the highest band has nothing to hear
            break
        seconds = size * (low + (high - low) * band / 3)
        hiss = dsp.filtered(
            clock.noise(rng, count), clock.biquad("highpass", bottom), clock.biquad("lowpass", top)
        )
        tail += hiss / np.sqrt((hiss**2).mean()) * clock.decay(count, seconds) * np.float32(0.8**band)
    return tail


def reverb(clock: Clock, audio: np.ndarray, room: str, variant: int, side: int = LEFT) -> np.ndarray:
    """The reverberation of (T,) on a side of a room without the direct sound; silence for "dry"."""
    if room == "dry":
        return np.zeros_like(audio)
    spectrum, taps = _room_spectrum(clock, room, variant % ROOM_VARIANTS, side)
    size = 2 * (spectrum.shape[0] - 1)
    hop = size - taps
    padded = np.zeros(taps + -(-len(audio) // hop) * hop, np.float32)
    padded[taps : taps + len(audio)] = audio
    segments = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    output = np.empty((len(segments), hop), np.float32)
    for row, segment in enumerate(segments):
        output[row] = np.fft.irfft(np.fft.rfft(segment) * spectrum, size)[taps:]
    return output.reshape(-1)[: len(audio)]


@functools.lru_cache(maxsize=2 * len(ROOMS) * ROOM_VARIANTS)
def _room_spectrum(clock: Clock, room: str, variant: int, side: int) -> tuple[np.ndarray, int]:
    response = room_response(clock, room, variant, side)
    size = max(16_384, 1 << (4 * len(response) - 1).bit_length() - 1)
    return np.fft.rfft(response, size), len(response)
