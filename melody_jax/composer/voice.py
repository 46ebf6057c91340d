"""Voices of the built-in synthesiser: one note to make, the tone of a take, and a cache of finished bodies.

A generator takes a `Voice` and options and returns the body of a note, the sound of a key that is held down, as float32
(voice.count,). `mode_voices` has damped modes for strings, bars and bells (a plucked string is the Karplus-Strong loop
solved into its modes), `oscillator_voices` has wavetables for oscillators and winds, `ensemble_voices` has looped
ensembles for pads, strings and choirs.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from melody_jax.composer.clock import Clock


@dataclass(frozen=True)
class Tone:
    """The differences between takes of a patch: factors near 1 (`blend` in 0..1), drawn per variant."""

    brightness: float = 1.0
    decay: float = 1.0
    detune: float = 1.0
    vibrato: float = 1.0
    attack: float = 1.0
    resonance: float = 1.0
    blend: float = 0.5


@dataclass(frozen=True)
class Voice:
    """One note: fundamental in Hz, MIDI pitch, velocity 0..1, length in samples, tone and random generator.

    `key` (instrument, variant, pitch, take, sample rate) identifies parts that do not depend on velocity and length.
    """

    frequency: float
    pitch: int
    velocity: float
    count: int
    tone: Tone
    rng: np.random.Generator
    key: tuple[str, int, int, int, int]
    clock: Clock

    def harmonics(self, limit: float = 11_000.0, most: int = 320) -> np.ndarray:
        """The numbers 1..H of the harmonics below `limit` Hz (`Clock.highest`), at most `most`, as floats."""
        return np.arange(1.0, max(2, min(most, int(self.clock.highest(limit) / self.frequency)) + 1))


class ArrayCache:
    """Arrays by key; the least recently used ones are dropped beyond `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._arrays: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns the array of `key`, calling `make` if it is not cached."""
        array = self._arrays.get(key)
        if array is not None:
            self._arrays.move_to_end(key)
            return array
        array = make()
        self._arrays[key] = array
        self._bytes += array.nbytes
        while self._bytes > self._limit:
            self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return array

    def clear(self) -> None:
        """Empties the cache."""
        self._arrays.clear()
        self._bytes = 0


BODIES = ArrayCache(256 * 2**20)
"""Bodies of notes and loops of ensembles, shared by all pieces of a process."""
