"""From written to played notes: swing, rubato, the players' unsteadiness, ranges and the piece's end."""

import math
from collections.abc import Sequence

import numpy as np

from melody_jax.composer.dice import Dice
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.composer.piece import Note

_SHORTEST = 0.05


def swung(beats: np.ndarray, swing: float, unit: float) -> np.ndarray:
    """Where beat positions fall when each pair in `unit` beats is played long-short (swing 1: two to one)."""
    whole = np.floor(beats / unit + 1e-9) * unit
    part, half = beats - whole, unit / 2
    late = half * (1 + swing / 3)
    return whole + np.where(part <= half, part * late / half, late + (part - half) * (unit - late) / half)


def bent(beats: np.ndarray, depth: float, period: float, phase: float) -> np.ndarray:
    """Rubato: time that breathes by `depth` beats over `period` beats, the same for every part; 0 stays 0."""
    return beats + depth * (np.sin(2 * math.pi * beats / period + phase) - math.sin(phase))


def folded(pitches: np.ndarray, low: int, high: int) -> np.ndarray:
    """Pitches moved by octaves into low..high."""
    below = np.maximum(0, np.ceil((low - pitches) / 12))
    above = np.maximum(0, np.ceil((pitches - high) / 12))
    return np.maximum(pitches + 12 * below - 12 * above, low)


class Performer:
    """Plays the parts of one piece: everyone shares swing and rubato, each has their own unsteadiness."""

    def __init__(
        self, dice: Dice, tempo: float, seconds: float, swing: float, unit: float, timing: float, steady: bool
    ) -> None:
        self.dice = dice
        self.swing, self.unit = swing, unit
        self.spread = timing * tempo / 60.0
        self.end = seconds * tempo / 60.0
        self.depth = 0.0 if steady else dice.between(0.12, 0.3)
        self.period = dice.between(5.0, 9.0)
        self.phase = dice.between(0, 6.28)

    def _time(self, beats: np.ndarray) -> np.ndarray:
        moved = swung(beats, self.swing, self.unit) if self.swing else beats
        return bent(moved, self.depth, self.period, self.phase) if self.depth else moved

    def play(self, notes: Sequence[Note], instrument: str, late: float = 0.0) -> tuple[Note, ...]:
        """The part as heard: in range, inside the piece, sorted, no key struck again while it sounds."""
        if not notes:
            return ()
        start, duration, pitch, velocity = np.array(notes, dtype=np.float64).T
        stop = self._time(start + duration)
        steady = self._time(start)
        start = np.where(
            start > 0, steady + late + 0.6 * self.spread * self.dice.bells(len(notes)), steady
        ).clip(0.0)
        stop = np.minimum(np.maximum(stop, start + _SHORTEST), self.end)
        if instrument != "drums":
            player = INSTRUMENTS[instrument]
            pitch = folded(pitch, player.low, player.high)
        velocity = (velocity + 2.5 * self.dice.bells(len(notes))).clip(12, 127)
        kept = np.flatnonzero(stop - start >= _SHORTEST / 2)
        kept = kept[np.lexsort((pitch[kept], start[kept]))]
        columns = (start[kept], (stop - start)[kept], pitch[kept].astype(int), velocity[kept].astype(int))
        return tuple(
            _untangled([Note(*row) for row in zip(*(column.tolist() for column in columns), strict=True)])
        )


def _untangled(notes: list[Note]) -> list[Note]:
    """Ends a note where the same key is struck again; drops doubled strokes."""
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
