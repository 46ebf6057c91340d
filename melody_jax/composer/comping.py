"""Accompaniment with voice leading: chord rhythms from grids, sustained chords, arpeggios, strums, chugs and swells.

A pattern is a grid or a name. Grid symbols: x accented chord, o soft chord, l low root, L low fifth, u top voice, c
short root (palm mute), p power chord. Names: "hold" (sustained), "bar" (restarted every bar), "swell:N" (N strokes per
beat that grow over two bars), "trem:N" (even strokes), "ORDER:N" with ORDER of `ARPEGGIOS` and N notes per beat.
"""

from melody_jax.composer.dice import Dice
from melody_jax.composer.form import Frame, Passage, Span
from melody_jax.composer.grid import Grid, compile_grid, fitting, leaning
from melody_jax.composer.piece import Note
from melody_jax.composer.theory import essential_tones, place, voicing

ARPEGGIOS: dict[str, tuple[int, ...]] = {
    # Indices of the chord's voices, low to high; beyond the top voice they continue an octave higher.
    "up": (0, 1, 2, 3),
    "down": (3, 2, 1, 0),
    "updown": (0, 1, 2, 3, 4, 3, 2, 1),
    "wide": (0, 2, 4, 5, 6, 5, 4, 2),
    "alberti": (0, 2, 1, 2),
    "waltz": (0, 2, 3, 2, 3, 2),
    "rolling": (0, 1, 2, 4, 3, 2),
    "travis": (0, 3, 1, 4, 0, 2, 1, 3),
    "picking": (0, 2, 3, 2, 4, 2, 3, 2),
    "pulse": (0, 3, 0, 2, 0, 3, 0, 4),
    "banjo": (1, 3, 4, 1, 3, 4, 1, 4),
    "fall": (4, 3, 2, 1, 3, 2, 1, 0),
}


class Comper:
    """One accompanying part with `voices` notes per chord around `centre`; `style` is close, open or drop2."""

    def __init__(
        self,
        dice: Dice,
        frame: Frame,
        patterns: tuple[str, ...],
        low: int,
        high: int,
        *,
        centre: float = 60,
        voices: int = 3,
        style: str = "close",
        gate: float = 0.9,
        strum: float = 0.0,
        rootless: bool = False,
        loud: float = 80,
    ) -> None:
        self.dice = dice
        self.frame = frame
        self.low = low
        self.high = high
        self.centre = min(max(centre, low + 5), high - 5)
        self.voices = voices
        self.style = style
        self.rootless = rootless
        self.gate = gate
        self.loud = loud
        self.strum = strum * frame.tempo / 60.0
        self.previous: tuple[int, ...] = ()
        self.pattern = leaning(fitting(patterns, frame.metre), dice, frame.mood.arousal)
        self.grid: Grid | None = None
        if self.pattern.partition(":")[0] not in ARPEGGIOS and self.pattern.partition(":")[0] not in _NAMED:
            self.grid = compile_grid((self.pattern,), frame.metre, dice)

    def play(self, passage: Passage) -> list[Note]:
        """The part in a passage; the last bar of a final passage is one sustained chord."""
        notes: list[Note] = []
        body_end = passage.end - passage.beats if passage.final else passage.end
        name, _, rate = self.pattern.partition(":")
        if self.grid is not None:
            for index, start in enumerate(passage.bar_starts()):
                if start < body_end - 1e-6:
                    notes += self._grid_bar(passage, start, self.grid, index)
        elif name in ("hold", "bar"):
            notes += self._sustain(passage, body_end, name == "bar")
        elif name in ("swell", "trem"):
            notes += self._strokes(passage, body_end, int(rate), name == "swell")
        else:
            notes += self._arpeggio(passage, body_end, ARPEGGIOS[name], float(rate))
        if passage.final:
            voices = self.voice(passage.span_at(body_end))
            notes += self._chord(voices, body_end, passage.beats, self._volume(passage, 0.9))
        return notes

    def voice(self, span: Span, power: bool = False) -> tuple[int, ...]:
        """The pitches of a chord, by voice leading from the previous ones."""
        chord = span.chord
        if power or chord.quality == "5":
            root = place(self.frame.tonic + chord.root, self.centre - 5, self.low, self.high - 12)
            pitches: tuple[int, ...] = (root, root + 7, root + 12)[: max(2, self.voices)]
        else:
            tones = essential_tones(chord, self.voices, self.rootless)
            pitches = voicing(
                self.frame.tonic, tones, self.previous, self.centre, self.low, self.high, self.style
            )
            if len(tones) < self.voices and pitches[0] + 12 <= self.high:
                pitches = (*pitches, pitches[0] + 12)
        self.previous = pitches
        return pitches

    def _volume(self, passage: Passage, accent: float) -> int:
        base = self.loud * accent * (0.8 + 0.25 * passage.energy) + 0.6 * self.frame.mood.velocity
        return int(min(max(base + 2.5 * self.dice.bell(), 20), 122))

    def _chord(
        self, pitches: tuple[int, ...], beat: float, length: float, loud: int, up: bool = False
    ) -> list[Note]:
        order = pitches[::-1] if up else pitches
        return [
            Note(beat + index * self.strum, max(0.1, length - index * self.strum), pitch, loud)
            for index, pitch in enumerate(order)
        ]

    def _grid_bar(self, passage: Passage, start: float, grid: Grid, index: int) -> list[Note]:
        notes: list[Note] = []
        for hit in grid.bar(index):
            beat = start + hit.offset
            span = passage.span_at(beat)
            length = max(0.1, min(hit.gap, 4.0) * self.gate)
            if hit.symbol in "lLc":
                degree = span.chord.bass if hit.symbol != "L" else span.chord.root + 7
                pitch = place(
                    self.frame.tonic + degree, max(self.low + 6, self.centre - 14), self.low, self.high
                )
                length = min(length, 0.3) if hit.symbol == "c" else length
                notes.append(Note(beat, length, pitch, self._volume(passage, 1.05)))
                continue
            pitches = self.voice(span, power=hit.symbol == "p")
            if hit.symbol == "u":
                pitches = pitches[-1:]
            if hit.symbol == "o" and self.strum:
                pitches = pitches[-3:]
            accent = 0.78 if hit.symbol in "ou" else 1.0
            notes += self._chord(pitches, beat, length, self._volume(passage, accent), up=hit.symbol == "o")
        return notes

    def _sustain(self, passage: Passage, end: float, each_bar: bool) -> list[Note]:
        notes: list[Note] = []
        for span in passage.spans:
            beat = span.start
            while beat < min(span.end, end) - 1e-6:
                until = min(span.end, end)
                if each_bar:
                    until = min(until, beat + passage.beats)
                notes += self._chord(
                    self.voice(span), beat, (until - beat) * 0.99, self._volume(passage, 0.9)
                )
                beat = until
        return notes

    def _strokes(self, passage: Passage, end: float, rate: int, growing: bool) -> list[Note]:
        notes: list[Note] = []
        period = 2 * passage.beats
        for step in range(int((end - passage.start) * rate + 1e-6)):
            beat = passage.start + step / rate
            growth = 0.6 + 0.5 * (((beat - passage.start) % period) / period) if growing else 0.85
            accent = growth + (0.08 if beat % 1 < 1e-6 else 0)
            notes += self._chord(
                self.voice(passage.span_at(beat)), beat, self.gate / rate, self._volume(passage, accent)
            )
        return notes

    def _arpeggio(self, passage: Passage, end: float, order: tuple[int, ...], rate: float) -> list[Note]:
        if self.frame.compound:
            rate = 3.0 if rate <= 4 else 6.0
        notes: list[Note] = []
        step = 0
        beat = passage.start
        last = None
        while beat < end - 1e-6:
            span = passage.span_at(beat)
            if span is not last:
                pitches = self.voice(span)
                last = span
            if (beat - passage.start) % passage.beats < 1e-6:
                step = 0
            octave, rung = divmod(order[step % len(order)], len(pitches))
            pitch = pitches[rung] + 12 * octave
            accent = 1.05 if beat % 1 < 1e-6 else 0.88
            if pitch <= self.high:
                notes.append(Note(beat, self.gate / rate * 1.3, pitch, self._volume(passage, accent)))
            step += 1
            beat = passage.start + round((beat - passage.start) * rate + 1) / rate
        return notes


_NAMED = ("hold", "bar", "swell", "trem")
