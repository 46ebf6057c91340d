"""Metre, harmony over time, and sections: the frame of every part."""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from melody_jax.composer.moods import Mood
from melody_jax.composer.theory import MODES, Chord


class Metre(NamedTuple):
    """Felt beats per bar, and whether beats divide into three."""

    beats: float
    compound: bool


METRES: dict[str, Metre] = {
    "4/4": Metre(4, False),
    "3/4": Metre(3, False),
    "2/4": Metre(2, False),
    "6/8": Metre(2, True),
    "12/8": Metre(4, True),
    "5/4": Metre(5, False),
    "7/8": Metre(3.5, False),
}


@dataclass(frozen=True)
class Frame:
    """Properties of the entire piece: tonic (pitch class), mode, metre, tempo, mood and swing."""

    tonic: int
    mode: str
    metre: str
    tempo: float
    mood: Mood
    swing: float

    @cached_property
    def beats(self) -> float:
        """Felt beats per bar."""
        return METRES[self.metre].beats

    @cached_property
    def compound(self) -> bool:
        """Whether beats divide into three."""
        return METRES[self.metre].compound

    @property
    def scale(self) -> tuple[int, ...]:
        """Pitch classes of the mode above the tonic."""
        return MODES[self.mode]


class Span(NamedTuple):
    """A chord from beat `start` (inclusive) to beat `end` (exclusive)."""

    start: float
    end: float
    chord: Chord


@dataclass(frozen=True)
class Passage:
    """One section in time: start beat, bars, beats per bar, energy 0..1, index of the theme, and chords.

    Earlier passages have played `played` bars of the theme, so that short passages continue it. A `final` passage ends
    the piece with a cadence; its last bar is sustained.
    """

    name: str
    start: float
    bars: int
    beats: float
    energy: float
    theme: int
    spans: tuple[Span, ...]
    played: int = 0
    final: bool = False

    @cached_property
    def end(self) -> float:
        """The beat at which the passage ends (exclusive)."""
        return self.start + self.bars * self.beats

    @cached_property
    def _starts(self) -> list[float]:
        return [span.start for span in self.spans]

    def span_at(self, beat: float) -> Span:
        """The chord at a beat; outside the passage, the first or last chord."""
        return self.spans[max(0, bisect_right(self._starts, beat + 1e-6) - 1)]

    def bar_starts(self) -> list[float]:
        """The first beat of each bar."""
        return [self.start + bar * self.beats for bar in range(self.bars)]
