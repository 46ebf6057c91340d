"""Bass lines: grids of chord degrees, walking lines, sustained roots and pedals.

Grid symbols: R root, F fifth, T third, S seventh or sixth, O octave, G ghost root, A approach to the root of the next
chord, N root of the next chord (early), P tonic pedal. A lower-case step is played with a probability of one half,
drawn once.
"""

from melody_jax.composer.dice import Dice
from melody_jax.composer.form import Frame, Passage, Span
from melody_jax.composer.grid import Grid, Hit, compile_grid
from melody_jax.composer.piece import Note
from melody_jax.composer.theory import chord_scale, ladder, nearest, place

_NAMED = ("walk", "hold", "two")


class Bassist:
    """Plays one pattern throughout the piece: a grid, "walk", "two" (a two-feel) or "hold"."""

    def __init__(
        self,
        dice: Dice,
        frame: Frame,
        patterns: tuple[str, ...],
        low: int,
        high: int,
        gate: float,
        centre: float = 41,
    ) -> None:
        self.dice = dice
        self.frame = frame
        named = [p for p in patterns if p in ("walk", "hold") or (p == "two" and frame.beats == 4)]
        texts = tuple(
            p for p in patterns if p not in _NAMED and ("|" not in p or p.startswith(frame.metre + "|"))
        )
        if frame.metre == "12/8":
            texts += tuple(p for p in patterns if p.startswith("6/8|"))
        share = len(named) / (len(named) + len(texts))
        self.kind = dice.among(named) if dice.chance(share) else "grid"
        self.low = low
        self.high = high
        self.gate = gate
        self.grid = (
            self._settle(compile_grid(texts, frame.metre, dice, frame.mood.arousal))
            if self.kind == "grid"
            else None
        )
        self.centre = min(max(centre, low + 6), max(low + 6, high - 6))
        self.last = int(self.centre)

    def _settle(self, grid: Grid) -> Grid:
        keep = {hit: not hit.symbol.islower() or self.dice.chance(0.5) for bar in grid.bars for hit in bar}
        return Grid(tuple(tuple(hit for hit in bar if keep[hit]) for bar in grid.bars))

    def play(self, passage: Passage) -> list[Note]:
        """The bass line of a passage."""
        if passage.final:
            body = passage.bar_starts()[:-1]
            close = passage.bar_starts()[-1]
        else:
            body = passage.bar_starts()
            close = None
        notes: list[Note] = []
        for index, start in enumerate(body):
            if self.kind == "walk":
                notes += self._walk(passage, start)
            elif self.kind == "two":
                notes += self._two(passage, start)
            elif self.kind == "hold" or self.grid is None:
                notes += self._hold(passage, start, start + passage.beats)
            else:
                notes += self._bar(passage, start, self.grid.bar(index))
        if close is not None:
            root = self._root(passage.span_at(close), self.centre)
            notes.append(Note(close, passage.beats, root, self._loud(passage, 96)))
        return notes

    def _root(self, span: Span, around: float) -> int:
        return place(self.frame.tonic + span.chord.bass, around, self.low, self.high)

    def _loud(self, passage: Passage, base: float) -> int:
        return int(min(max(base * (0.82 + 0.18 * passage.energy) + 0.5 * self.frame.mood.velocity, 25), 124))

    def _next_span(self, passage: Passage, beat: float, gap: float) -> Span:
        return passage.span_at(beat + gap) if beat + gap < passage.end else passage.spans[0]

    def _degree(self, symbol: str, passage: Passage, beat: float, gap: float) -> int:
        span = passage.span_at(beat)
        tones = span.chord.tones
        root = self._root(span, self.centre)
        fifth = next(
            ((t - span.chord.root) % 12 for t in tones if (t - span.chord.root) % 12 in (6, 7, 8)), 7
        )
        if symbol == "F":
            above = root + (span.chord.root + fifth - span.chord.bass) % 12
            return (
                above - 12
                if above - 12 >= self.low and (above > self.high - 2 or root > self.centre)
                else above
            )
        if symbol == "O":
            return root + 12 if root + 12 <= self.high else root
        if symbol == "T":
            return place(self.frame.tonic + tones[1], root + 3, self.low, self.high)
        if symbol == "S":
            sixth = (tones[1] - span.chord.root) % 12 == 4
            last = tones[3] if len(tones) > 3 else span.chord.root + (9 if sixth else 10)
            return place(self.frame.tonic + last, root + 9, self.low, self.high)
        if symbol in "AN":
            target = self._root(self._next_span(passage, beat, gap), self.centre)
            if symbol == "N":
                return target
            return target + self.dice.among((-1, -2, 1) if target > self.low + 2 else (1, 2))
        if symbol == "P":
            return place(self.frame.tonic, self.centre, self.low, self.high)
        return root

    def _bar(self, passage: Passage, start: float, hits: tuple[Hit, ...]) -> list[Note]:
        notes = []
        for hit in hits:
            beat = start + hit.offset
            symbol = hit.symbol.upper()
            if beat >= passage.end:
                break
            pitch = min(max(self._degree(symbol, passage, beat, hit.gap), self.low), self.high)
            length = min(hit.gap, passage.span_at(beat).end - beat if hit.gap > 1 else hit.gap) * self.gate
            base = 58 if symbol == "G" else 100 if hit.offset < 1e-6 else 92
            length = min(length, 0.18) if symbol == "G" else max(length, 0.12)
            notes.append(Note(beat, length, pitch, self._loud(passage, base + 3 * self.dice.bell())))
        return notes

    def _hold(self, passage: Passage, start: float, end: float) -> list[Note]:
        notes = []
        beat = start
        while beat < end - 1e-6:
            span = passage.span_at(beat)
            until = min(span.end if span.end > beat else end, end)
            notes.append(
                Note(beat, (until - beat) * 0.98, self._root(span, self.centre), self._loud(passage, 88))
            )
            beat = until
        return notes

    def _two(self, passage: Passage, start: float) -> list[Note]:
        """Two-feel: the root on one, the fifth on three, sometimes an approach note at the end."""
        half = passage.beats / 2
        notes = []
        for index in range(2):
            beat = start + index * half
            pitch = self._degree(
                "R" if index == 0 or passage.span_at(beat).start == beat else "F", passage, beat, half
            )
            notes.append(Note(beat, half * 0.9, pitch, self._loud(passage, 94)))
        if self.dice.chance(0.35):
            beat = start + passage.beats - 0.5
            notes.append(Note(beat, 0.45, self._degree("A", passage, beat, 0.5), self._loud(passage, 80)))
        return notes

    def _walk(self, passage: Passage, start: float) -> list[Note]:
        """Quarter notes: roots on new chords, then scale and chord steps, and an approach to the next root."""
        notes = []
        count = int(passage.beats)
        for step in range(count):
            beat = start + step
            span = passage.span_at(beat)
            following = self._next_span(passage, beat, 1)
            if beat - span.start < 1e-6:
                pitch = self._root(
                    span, self.last if self.low + 3 < self.last < self.high - 4 else self.centre
                )
            elif following is not span and following.start - beat <= 1.01:
                target = self._root(following, self.last)
                pitch = target + (self.dice.among((-1, 1, -2, 2, 5)) if self.dice.chance(0.9) else -5)
            else:
                scale = ladder(
                    self.frame.tonic, chord_scale(self.frame.scale, span.chord), self.low, self.high
                )
                tones = ladder(self.frame.tonic, tuple(sorted(span.chord.tones)), self.low, self.high)
                drift = (
                    self.dice.among((2, 3, 4)) if self.last < self.centre + 3 else -self.dice.among((2, 3, 4))
                )
                pitch = nearest(self.last + drift, tones if step == 2 or self.dice.chance(0.4) else scale)
            if pitch == self.last:
                pitch += 12 if pitch + 12 <= self.high - 4 else 0
            pitch = min(max(pitch, self.low), self.high)
            notes.append(
                Note(
                    beat, 0.92, pitch, self._loud(passage, 96 + (4 if step % 2 else 0) + 3 * self.dice.bell())
                )
            )
            if self.dice.chance(0.08):
                notes[-1] = notes[-1]._replace(duration=0.45)
                notes.append(Note(beat + 0.5, 0.35, pitch, self._loud(passage, 70)))
            self.last = pitch
        return notes
