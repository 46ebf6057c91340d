"""Metre, harmony in time, and sections: the frame that every part is written into."""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from melody_jax.composer.moods import Mood
from melody_jax.composer.theory import MODES, Chord


class Metre(NamedTuple):
    """Felt beats in a bar and whether beats divide by three."""

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
    """What holds for the whole piece: tonic (pitch class), mode, metre, tempo, mood, swing and the key's notes."""

    tonic: int
    mode: str
    metre: str
    tempo: float
    mood: Mood
    swing: float

    @cached_property
    def beats(self) -> float:
        """Felt beats in a bar."""
        return METRES[self.metre].beats

    @cached_property
    def compound(self) -> bool:
        """Whether beats divide by three."""
        return METRES[self.metre].compound

    @property
    def scale(self) -> tuple[int, ...]:
        """The mode's pitch classes above the tonic."""
        return MODES[self.mode]


class Span(NamedTuple):
    """A chord and the beats it sounds, `start` inclusive, `end` exclusive."""

    start: float
    end: float
    chord: Chord


@dataclass(frozen=True)
class Passage:
    """One section as it is played: where, how long, how energetic, which theme, over which chords.

    `played` bars of the theme came before in earlier passages, so that short passages carry it on; `final` marks the
    passage that closes the piece with a cadence: its last bar is held.
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
        """The beat after its last."""
        return self.start + self.bars * self.beats

    @cached_property
    def _starts(self) -> list[float]:
        return [span.start for span in self.spans]

    def span_at(self, beat: float) -> Span:
        """The chord that sounds at a beat (the first or last one outside the passage)."""
        return self.spans[max(0, bisect_right(self._starts, beat + 1e-6) - 1)]

    def bar_starts(self) -> list[float]:
        """The first beat of each of its bars."""
        return [self.start + bar * self.beats for bar in range(self.bars)]
