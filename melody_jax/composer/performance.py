"""From written to played notes: swing, rubato, timing deviations, instrument ranges and the end of the piece."""

import math
from collections.abc import Sequence

import numpy as np

from melody_jax.composer.dice import Dice
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.composer.piece import Note

_SHORTEST = 0.05


def swung(beats: np.ndarray, swing: float, unit: float) -> np.ndarray:
    """Beat positions with each pair in `unit` beats played long-short (swing 1: two to one)."""
    pair_start = np.floor(beats / unit + 1e-9) * unit
    part = beats - pair_start
    half = unit / 2
    late = half * (1 + swing / 3)
    return pair_start + np.where(
        part <= half, part * late / half, late + (part - half) * (unit - late) / half
    )


def bent(beats: np.ndarray, depth: float, period: float, phase: float) -> np.ndarray:
    """Beat positions with rubato of `depth` beats over `period` beats; beat 0 does not move."""
    return beats + depth * (np.sin(2 * math.pi * beats / period + phase) - math.sin(phase))


def folded(pitches: np.ndarray, low: int, high: int) -> np.ndarray:
    """Pitches transposed by octaves into low..high."""
    below = np.maximum(0, np.ceil((low - pitches) / 12))
    above = np.maximum(0, np.ceil((pitches - high) / 12))
    return np.maximum(pitches + 12 * below - 12 * above, low)


class Performer:
    """Performs the parts of one piece: they share swing and rubato, and differ in timing deviations."""

    def __init__(
        self, dice: Dice, tempo: float, seconds: float, swing: float, unit: float, timing: float, steady: bool
    ) -> None:
        self.dice = dice
        self.swing = swing
        self.unit = unit
        self.timing_spread = timing * tempo / 60.0
        self.end = seconds * tempo / 60.0
        self.depth = 0.0 if steady else dice.between(0.12, 0.3)
        self.period = dice.between(5.0, 9.0)
        self.phase = dice.between(0, 6.28)

    def _time(self, beats: np.ndarray) -> np.ndarray:
        moved = swung(beats, self.swing, self.unit) if self.swing else beats
        return bent(moved, self.depth, self.period, self.phase) if self.depth else moved

    def play(self, notes: Sequence[Note], instrument: str, late: float = 0.0) -> tuple[Note, ...]:
        """The performed part: in range, inside the piece, sorted, without overlaps of the same pitch."""
        if not notes:
            return ()
        start, duration, pitch, velocity = np.array(notes, dtype=np.float64).T
        stop = self._time(start + duration)
        steady = self._time(start)
        start = np.where(
            start > 0, steady + late + 0.6 * self.timing_spread * self.dice.bells(len(notes)), steady
        ).clip(0.0)
        stop = np.minimum(np.maximum(stop, start + _SHORTEST), self.end)
        if instrument != "drums":
            player = INSTRUMENTS[instrument]
            pitch = folded(pitch, player.low, player.high)
        velocity = (velocity + 2.5 * self.dice.bells(len(notes))).clip(12, 127)
        sounding = np.flatnonzero(stop - start >= _SHORTEST / 2)
        sounding = sounding[np.lexsort((pitch[sounding], start[sounding]))]
        columns = (
            start[sounding],
            (stop - start)[sounding],
            pitch[sounding].astype(int),
            velocity[sounding].astype(int),
        )
        return tuple(
            _untangled([Note(*row) for row in zip(*(column.tolist() for column in columns), strict=True)])
        )


def _untangled(notes: list[Note]) -> list[Note]:
    """Ends a note when its pitch starts again, and drops doubled notes."""
    sounding: dict[int, int] = {}
    result: list[Note] = []
    for note in notes:
        index = sounding.get(note.pitch)
        if index is not None:
            earlier = result[index]
            if note.start - earlier.start < 0.03:
                continue
            if earlier.start + earlier.duration > note.start:
                result[index] = earlier._replace(duration=note.start - earlier.start)
        sounding[note.pitch] = len(result)
        result.append(note)
    return result
