"""Melodies from motifs: a rhythm and a contour in scale steps that is repeated, transposed, varied and closed.

A motif has one bar. A phrase scheme assigns motifs to the bars of a section; `Singer` fits them to the chords: strong
and long notes are chord tones, the others are scale tones that move by step.
"""

from dataclasses import dataclass
from typing import NamedTuple

from melody_jax.composer.dice import Dice
from melody_jax.composer.form import Frame, Passage
from melody_jax.composer.piece import Note
from melody_jax.composer.splits import draw_within, stable_hash
from melody_jax.composer.theory import MINOR_MODES, Chord, chord_scale, ladder, nearest

_CELLS: dict[tuple[float, ...], float] = {
    (): 0.5,
    (0.0,): 3.0,
    (0.0, 0.5): 3.0,
    (0.5,): 1.0,
    (0.0, 0.75): 0.8,
    (0.0, 0.25, 0.5): 0.6,
    (0.0, 0.5, 0.75): 1.0,
    (0.0, 0.25, 0.5, 0.75): 1.0,
    (0.25, 0.75): 0.25,
    (0.0, 0.25): 0.2,
    (0.5, 0.75): 0.6,
    (0.25, 0.5): 0.15,
}
_COMPOUND_CELLS: dict[tuple[float, ...], float] = {
    (): 0.4,
    (0.0,): 3.0,
    (0.0, 2 / 3): 3.0,
    (0.0, 1 / 3, 2 / 3): 3.0,
    (2 / 3,): 0.5,
    (1 / 3, 2 / 3): 0.5,
    (0.0, 0.5, 2 / 3): 0.5,
}
_SCHEMES: dict[str, dict[str, float]] = {
    # One letter per bar: a and b are the motifs, v varies a, u and d transpose it, i inverts it, - rests, c closes.
    "tune": {"abac": 3, "aabc": 2, "avbc": 2, "aubc": 2, "aduc": 1, "abvc": 2, "audc": 1.5, "abic": 1, "a-ac": 0.7},
    "call": {"a-a-": 2, "a-v-": 2, "a-ac": 2, "ab-c": 1.5, "a-bc": 2, "av-c": 1},
    "riff": {"aaaa": 3, "aaab": 3, "abab": 3, "aaav": 2, "aavb": 1, "a-a-": 0.5},
    "line": {"abcc": 0.5, "abvi": 1, "abuc": 2, "avbc": 2, "uabc": 1, "auvi": 1, "aubd": 1, "abdc": 2},
    "sparse": {"a-b-": 2, "a--c": 1, "ab-c": 2, "a-vc": 2, "aa-b": 1},
}  # fmt: skip
_PENTATONIC = {False: (0, 2, 4, 7, 9), True: (0, 3, 5, 7, 10)}
_BLUES = (0, 3, 5, 6, 7, 10)


class Motif(NamedTuple):
    """One bar of melody: `onsets` in beats, and `contour` in scale steps from the first note."""

    onsets: tuple[float, ...]
    contour: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class MelodyStyle:
    """Melody style of a genre. `density` is in onsets per beat; `syncopation`, `leap`, `ornament`, `chromatic` in 0..1.

    `scale` is mode, pentatonic, blues or chord; `scheme` has weights of phrase schemes; `gate` is the sounding fraction
    of a note; `longest` is the maximum length in beats; `pickup` is the probability of an upbeat; `span` is in
    semitones.
    """

    density: tuple[float, float] = (0.8, 1.3)
    syncopation: float = 0.2
    leap: float = 0.2
    gate: tuple[float, float] = (0.85, 1.0)
    scale: str = "mode"
    scheme: dict[str, float]
    ornament: float = 0.0
    chromatic: float = 0.0
    longest: float = 4.0
    pickup: float = 0.3
    span: int = 12


def melody_hash(motif: Motif) -> int:
    """Fingerprint of a motif: rhythm and contour, independent of key and chords."""
    return stable_hash(("motif", tuple(round(onset * 12) for onset in motif.onsets), motif.contour))


def _rhythm(dice: Dice, frame: Frame, density: float, syncopation: float) -> tuple[float, ...]:
    cells = _COMPOUND_CELLS if frame.compound else _CELLS
    weights = {}
    for cell, weight in cells.items():
        off_beat = bool(cell) and cell[0] > 0
        lean = (0.25 + 3 * syncopation) if off_beat or (len(cell) == 2 and 0.75 in cell) else 1.0
        weights[cell] = weight * lean * 2.718 ** (-2.2 * abs(len(cell) - density))
    count = int(frame.beats + 0.5)
    first = [dice.pick(weights) for _ in range(count)]
    if count == 4 and dice.chance(0.5):
        first[2] = first[0]
    elif count >= 3 and dice.chance(0.3):
        first[1] = first[0]
    onsets = tuple(
        beat + offset for beat, cell in enumerate(first) for offset in cell if beat + offset < frame.beats
    )
    if not onsets or (onsets[0] > 0.5 and not dice.chance(syncopation)):
        onsets = (0.0, *onsets)
    return onsets


def _contour(dice: Dice, count: int, leap: float) -> tuple[int, ...]:
    trend = dice.among((-0.25, 0.0, 0.0, 0.25, 0.35))
    turn = dice.integer(1, max(1, count - 1)) if dice.chance(0.5) else count
    position = 0
    last = 0
    steps = [0]
    for index in range(1, count):
        drift = trend if index < turn else -trend
        if abs(last) >= 3 and dice.chance(0.75):
            move = -1 if last > 0 else 1
        elif dice.chance(0.12):
            move = 0
        else:
            sign = (
                1
                if dice.chance(0.5 + drift + (0.15 if position < -3 else -0.15 if position > 3 else 0))
                else -1
            )
            size = dice.pick(
                {
                    1: 6.0,
                    2: 1.5 + 4 * leap,
                    3: 0.3 + 3 * leap,
                    4: 2.2 * leap,
                    5: 1.2 * leap,
                    7: 0.8 * leap * leap,
                }
            )
            move = sign * size
        position = max(-7, min(7, position + move))
        steps.append(position)
        last = move
    return tuple(steps)


def draw_motif(dice: Dice, split: str, frame: Frame, style: MelodyStyle) -> Motif:
    """Draws a motif with a fingerprint of the split."""
    low, high = style.density
    leap = max(0.0, style.leap + frame.mood.leap)

    def draw(attempt: int) -> Motif:
        density = dice.between(low, high) * frame.mood.density * (1 + 0.002 * attempt)
        onsets = _rhythm(dice, frame, density, style.syncopation)
        return Motif(onsets, _contour(dice, len(onsets), leap))

    return draw_within(split, draw, melody_hash)


class Singer:
    """Realises motifs for one instrument: within its range, on the chords, and close to the last pitch."""

    def __init__(
        self, dice: Dice, frame: Frame, style: MelodyStyle, low: int, high: int, centre: float
    ) -> None:
        self.dice = dice
        self.frame = frame
        self.style = style
        self.low = low
        self.high = high
        half = style.span / 2 + 1
        self.centre = min(max(centre, low + half), high - half)
        self.last: float = self.centre
        self.gate = dice.between(*style.gate) * frame.mood.gate
        self._rungs_by_chord: dict[Chord, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def _rungs(self, passage: Passage, beat: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The pitches of the scale and of the chord at a beat."""
        chord = passage.span_at(beat).chord
        rungs = self._rungs_by_chord.get(chord)
        if rungs is None:
            rungs = self._rungs_by_chord[chord] = self._build_rungs(chord)
        return rungs

    def _build_rungs(self, chord: Chord) -> tuple[tuple[int, ...], tuple[int, ...]]:
        minor = self.frame.mode in MINOR_MODES
        if self.style.scale == "pentatonic":
            base = tuple(sorted(set(_PENTATONIC[minor]) | set(chord.tones[:3])))
            base = tuple(
                pc
                for pc in base
                if not (pc not in chord.tones and {(pc + 1) % 12, (pc - 1) % 12} & set(chord.tones))
            )
        elif self.style.scale == "blues":
            base = tuple(sorted({*_BLUES, chord.root}))
        elif self.style.scale == "chord":
            base = tuple(sorted(chord.tones))
        else:
            base = chord_scale(self.frame.scale, chord)
        low = self.low
        high = self.high
        return ladder(self.frame.tonic, base, low, high), ladder(
            self.frame.tonic, tuple(sorted(chord.tones[:4])), low, high
        )

    def bar(self, passage: Passage, start: float, motif: Motif, anchor: float, final: bool) -> list[Note]:
        """One bar of melody that begins near the pitch `anchor`; a `final` bar ends on a long chord tone."""
        onsets = motif.onsets
        if final:
            keep = max(1, sum(onset < self.frame.beats / 2 for onset in onsets))
            onsets = onsets[:keep]
        scale, chord_rungs = self._rungs(passage, start + onsets[0])
        first = scale.index(nearest(nearest(anchor, chord_rungs), scale)) if chord_rungs else 0
        notes = []
        for index, onset in enumerate(onsets):
            beat = start + onset
            following = onsets[index + 1] if index + 1 < len(onsets) else self.frame.beats
            length = min(following - onset, self.style.longest)
            scale, chord_rungs = self._rungs(passage, beat)
            rung = min(max(first + motif.contour[index], 0), len(scale) - 1)
            move = motif.contour[index] - motif.contour[index - 1] if index else 0
            pitch = self._settle(scale[rung], move, passage, beat, length, final and index == len(onsets) - 1)
            gate = self.gate if length < 1.5 else max(self.gate, 0.85)
            notes.append(
                Note(beat, max(0.1, length * min(gate, 1.05)), pitch, self._velocity(passage, beat, onset))
            )
            self.last = pitch
        return notes

    def _settle(
        self, pitch: int, move: int, passage: Passage, beat: float, length: float, final: bool
    ) -> int:
        """Moves strong and long notes to chord tones in the direction `move` of the contour, and limits leaps."""
        onset = (beat - passage.start) % passage.beats
        _, tones = self._rungs(passage, beat)
        strong = onset < 1e-6 or (passage.beats == 4 and abs(onset - 2) < 1e-6) or length >= 1.5
        if final and tones:
            root = (self.frame.tonic + passage.span_at(beat).chord.root) % 12
            roots = [rung for rung in tones if rung % 12 == root]
            pitch = nearest(self.last, roots if roots and passage.final else tones)
        elif tones and strong and not self.dice.chance(0.5 * self.frame.mood.dissonance + 0.04):
            pitch = nearest(0.8 * pitch + 0.2 * self.last + self.dice.between(-0.4, 0.4), tones)
            if pitch == self.last and move:
                onward = [rung for rung in tones if 0 < (rung - pitch) * (1 if move > 0 else -1) <= 7]
                pitch = (onward[0] if move > 0 else onward[-1]) if onward else pitch
        while pitch - self.last > 12 and pitch - 12 >= self.low:
            pitch -= 12
        while self.last - pitch > 12 and pitch + 12 <= self.high:
            pitch += 12
        return pitch

    def _velocity(self, passage: Passage, beat: float, onset: float) -> int:
        through = (beat - passage.start) / max(1.0, passage.end - passage.start)
        arch = 8 * (1 - abs(2 * (2 * through % 1) - 1))
        accent = 8 if onset < 1e-6 else 3 if onset % 1 < 1e-6 else -3
        base = 78 + 18 * passage.energy + self.frame.mood.velocity * 0.7
        return int(min(max(base + accent + arch, 28), 125))

    def phrase(
        self, passage: Passage, motifs: tuple[Motif, ...], scheme: str, skip: float = 0.0
    ) -> list[Note]:
        """The melody of a passage: the scheme over its bars, in phrases of four bars."""
        notes: list[Note] = []
        anchors: dict[str, float] = {}
        bars = passage.bar_starts()
        peak = self.dice.between(0.45, 0.8)
        for index, start in enumerate(bars):
            letter = scheme[(passage.played + index) % len(scheme)]
            last = index == len(bars) - 1
            if last and passage.final:
                notes += self.bar(passage, start, Motif((0.0,), (0,)), self.last, True)
                continue
            if letter == "-" or (skip and self.dice.chance(skip)):
                self._extend(notes, start)
                continue
            place_in_phrase = (index % 4 + 0.5) / 4
            arch = (1 - abs(place_in_phrase - peak) / max(peak, 1 - peak)) * self.style.span * 0.35
            target = self.centre + arch * (0.5 + passage.energy) - 2 + 0.3 * (self.last - self.centre)
            motif = self._variant(motifs, letter)
            home = "a" if letter in "avi" else letter
            anchor = anchors.get(home, target)
            if letter in "ud":
                anchor = anchors.get("a", target) + (2 if letter == "u" else -2)
            anchors.setdefault(home, anchor)
            closing = letter == "c" or (last and self.dice.chance(0.6))
            notes += self.bar(passage, start, motif, anchor, closing)
            self._pickup(notes, passage, start, letter)
        return self._polish(notes, passage)

    def _variant(self, motifs: tuple[Motif, ...], letter: str) -> Motif:
        a = motifs[0]
        b = motifs[1 % len(motifs)]
        if letter == "i":
            return Motif(a.onsets, tuple(-step for step in a.contour))
        if letter == "v":
            count = len(a.onsets)
            keep = max(1, count // 2)
            tail = (
                b.onsets[-(count - keep) :]
                if count > keep and len(b.onsets) >= count - keep
                else a.onsets[keep:]
            )
            onsets = a.onsets[:keep] + tuple(onset for onset in tail if onset > a.onsets[keep - 1])
            contour = (a.contour + b.contour)[: len(onsets)]
            return Motif(onsets, contour)
        if letter in "bc":
            return b
        return a

    def _extend(self, notes: list[Note], start: float) -> None:
        """Extends the note before a rest, sometimes."""
        if notes and self.dice.chance(0.5):
            note = notes[-1]
            notes[-1] = note._replace(
                duration=note.duration + min(1.0, max(0.0, start + 1 - note.start - note.duration))
            )

    def _pickup(self, notes: list[Note], passage: Passage, start: float, letter: str) -> None:
        """After a cadence, sometimes leads to the next bar by step."""
        end = start + self.frame.beats
        if (
            letter != "c"
            or end >= passage.end
            or not self.dice.chance(self.style.pickup)
            or self.frame.compound
        ):
            return
        note = notes[-1]
        if note.start > end - 2:
            return
        scale, _ = self._rungs(passage, end - 0.5)
        rung = scale.index(nearest(self.last, scale))
        direction = 1 if self.last < self.centre + 2 else -1
        notes[-1] = note._replace(duration=min(note.duration, end - 1 - note.start))
        for step, offset in enumerate((1.0, 0.5)):
            pitch = scale[min(max(rung + direction * (step + 1), 0), len(scale) - 1)]
            notes.append(Note(end - offset, 0.45, pitch, max(30, notes[-1].velocity - 4)))
            self.last = pitch

    def _polish(self, notes: list[Note], passage: Passage) -> list[Note]:
        """Removes leaps from dissonances, and adds chromatic approaches and ornaments."""
        result: list[Note] = []
        for index, note in enumerate(notes):
            chord_tones = passage.span_at(note.start).chord.tones
            dissonant = (note.pitch - self.frame.tonic) % 12 not in chord_tones
            following = notes[index + 1] if index + 1 < len(notes) else None
            if (
                dissonant
                and following
                and abs(following.pitch - note.pitch) > (2 if note.duration > 0.8 else 4)
                and self.style.scale != "blues"
            ):
                _, rungs = self._rungs(passage, note.start)
                note = note._replace(pitch=nearest(note.pitch, rungs) if rungs else note.pitch)
            weak = note.start % 1 > 1e-6
            if weak and following and self.style.chromatic and self.dice.chance(self.style.chromatic):
                side = 1 if following.pitch < note.pitch else -1
                if (
                    abs(following.start - note.start) <= 0.51
                    and self.low <= following.pitch + side <= self.high
                ):
                    note = note._replace(pitch=following.pitch + side)
            if self.style.ornament and note.duration > 0.45 and self.dice.chance(self.style.ornament):
                result += self._ornament(note, passage)
            else:
                result.append(note)
        return result

    def _ornament(self, note: Note, passage: Passage) -> list[Note]:
        scale, _ = self._rungs(passage, note.start)
        above = nearest(note.pitch + 2, [rung for rung in scale if rung > note.pitch] or [note.pitch])
        below = nearest(note.pitch - 2, [rung for rung in scale if rung < note.pitch] or [note.pitch])
        length = min(0.125, note.duration / 4)
        kind = self.dice.pick({"grace": 3.0, "mordent": 1.5, "turn": 0.7 if note.duration > 0.9 else 0.0})
        pitches = {"grace": (below,), "mordent": (note.pitch, above), "turn": (above, note.pitch, below)}[
            kind
        ]
        notes = [
            Note(note.start + i * length, length, pitch, max(20, note.velocity - 8))
            for i, pitch in enumerate(pitches)
        ]
        lead_in = len(pitches) * length
        return [*notes, note._replace(start=note.start + lead_in, duration=max(0.1, note.duration - lead_in))]


def draw_scheme(dice: Dice, style: MelodyStyle) -> str:
    """Draws a phrase scheme of the style, one letter per bar."""
    return dice.pick(_SCHEMES[dice.pick(style.scheme)])
