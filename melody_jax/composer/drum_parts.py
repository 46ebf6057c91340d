"""Drum parts: one grid per voice, light and full sections, fills before section changes and crashes after them.

Grid symbols: x accent, o normal, g ghost, digits for probabilities of a normal hit. Voices are names of `KEYS`.
"""

from dataclasses import dataclass, field

from melody_jax.composer.dice import Dice
from melody_jax.composer.form import Frame, Passage
from melody_jax.composer.grid import Grid, compile_grid
from melody_jax.composer.piece import Note

KEYS: dict[str, int] = {
    "kick": 36, "stick": 37, "snare": 38, "clap": 39, "snare2": 40, "floor": 41, "hat": 42, "low tom": 43, "pedal": 44,
    "mid tom": 45, "open": 46, "high tom": 48, "crash": 49, "top tom": 50, "ride": 51, "china": 52, "bell": 53,
    "tambourine": 54, "splash": 55, "cowbell": 56, "crash2": 57, "ride2": 59, "bongo": 60, "bongo low": 61,
    "conga mute": 62, "conga": 63, "conga low": 64, "timbale": 65, "timbale low": 66, "agogo": 67, "agogo low": 68,
    "cabasa": 69, "maracas": 70, "guiro": 73, "clave": 75, "block": 76, "block low": 77, "triangle": 81, "shaker": 82,
}  # fmt: skip
_LOUD = {"x": 108, "o": 88, "g": 42}
_QUIET = {
    "hat": 0.78,
    "open": 0.85,
    "shaker": 0.7,
    "cabasa": 0.7,
    "ride": 0.85,
    "pedal": 0.7,
    "maracas": 0.7,
    "crash": 0.9,
}
_FILLS: dict[str, tuple[str, ...]] = {
    "toms": ("snare", "snare", "high tom", "mid tom", "low tom", "floor"),
    "snare": ("snare",),
    "roll": ("snare",),
    "brush": ("snare", "snare", "low tom", "snare"),
    "hats": ("hat", "snare", "open", "clap"),
    "timbales": ("timbale", "timbale", "timbale low", "timbale"),
    "kit": ("snare", "kick", "snare", "kick"),
}


@dataclass(frozen=True, kw_only=True)
class DrumStyle:
    """Drum style of a genre.

    `voices` maps a voice to alternative grids; `extra` voices join in energetic sections; `light` names the voices of
    quiet sections; `fill` is a kind of fill or "none"; `crash` is the voice that opens a section ("" for none).
    """

    voices: dict[str, tuple[str, ...]]
    extra: dict[str, tuple[str, ...]] = field(default_factory=dict)
    light: tuple[str, ...] = ("hat", "kick")
    fill: str = "toms"
    crash: str = "crash"


class Drummer:
    """Plays one version of a style, drawn once, so that the groove stays the same throughout a piece."""

    def __init__(self, dice: Dice, frame: Frame, style: DrumStyle, loud: float = 1.0) -> None:
        self.dice = dice
        self.frame = frame
        self.style = style
        self.loud = loud
        lean = frame.mood.arousal
        self.grids = {
            voice: compile_grid(texts, frame.metre, dice, lean) for voice, texts in style.voices.items()
        }
        joining = [voice for voice in style.extra if dice.chance(0.55 + 0.2 * lean)]
        self.extra = {voice: compile_grid(style.extra[voice], frame.metre, dice, lean) for voice in joining}

    def play(self, passage: Passage, opens: bool, closes: bool) -> list[Note]:
        """The drums of a passage; `opens` starts it with a crash, `closes` ends it with a fill."""
        light = passage.energy < 0.35
        notes: list[Note] = []
        bars = passage.bar_starts()
        fill_beats = self._fill_length(passage) if closes and not light else 0.0
        for index, start in enumerate(bars):
            last = index == len(bars) - 1
            if passage.final and last:
                notes += self._last_bar(passage, start)
                continue
            limit = passage.beats - (fill_beats if last else 0)
            for voice, grid in self._playing(passage, light).items():
                notes += self._voice(passage, voice, grid, index, start, limit)
            if fill_beats and last:
                notes += self._fill(passage, start + limit, fill_beats)
            elif index % 4 == 3 and not light and self.style.fill != "none" and self.dice.chance(0.4):
                notes += self._pickup(passage, start + passage.beats - 0.5)
        if opens and not light and self.style.crash:
            notes.append(Note(passage.start, 1.0, KEYS[self.style.crash], self._volume(passage, 100)))
        return notes

    def _playing(self, passage: Passage, light: bool) -> dict[str, Grid]:
        if passage.name == "breakdown":
            return {
                voice: grid for voice, grid in self.grids.items() if voice not in ("kick", "snare", "clap")
            }
        if light:
            chosen = {voice: grid for voice, grid in self.grids.items() if voice in self.style.light}
            return chosen or self.grids
        return {**self.grids, **self.extra} if passage.energy > 0.6 else self.grids

    def _voice(
        self, passage: Passage, voice: str, grid: Grid, index: int, start: float, limit: float
    ) -> list[Note]:
        key = KEYS[voice]
        scale = _QUIET.get(voice, 1.0)
        return [
            Note(
                start + hit.offset,
                min(hit.gap, 0.5),
                key,
                self._volume(passage, _LOUD.get(hit.symbol, 88) * scale),
            )
            for hit in grid.bar(index)
            if hit.offset < limit - 1e-6 and (hit.symbol != "g" or self.dice.chance(0.7))
        ]

    def _volume(self, passage: Passage, base: float) -> int:
        value = (
            base * self.loud * (0.78 + 0.25 * passage.energy)
            + 0.5 * self.frame.mood.velocity
            + 3 * self.dice.bell()
        )
        return int(min(max(value, 15), 126))

    def _fill_length(self, passage: Passage) -> float:
        if self.style.fill == "none":
            return 0.0
        if passage.name == "build":
            return passage.beats
        if self.frame.compound:
            return 1.0
        return min(self.frame.beats - 1, self.dice.pick({1.0: 4.0, 2.0: 3.0, 3.0: 0.7, 0.5: 1.0}))

    def _fill(self, passage: Passage, start: float, beats: float) -> list[Note]:
        """Strokes of growing volume over the voices of a fill, in order or, for some kinds, at random."""
        kind = self.style.fill
        rate = (
            3 if self.frame.compound else 2 if self.frame.tempo > 165 and kind not in ("roll", "kit") else 4
        )
        count = max(1, int(beats * rate))
        voices = _FILLS[kind]
        notes = []
        for step in range(count):
            if kind != "roll" and step and self.dice.chance(0.25):
                continue
            voice = voices[min(len(voices) - 1, step * len(voices) // count)]
            if kind in ("hats", "brush", "kit"):
                voice = self.dice.among(voices)
            beat = start + step / rate
            notes.append(Note(beat, 0.25, KEYS[voice], self._volume(passage, 70 + 40 * (step + 1) / count)))
            if kind == "toms" and step % rate == 0:
                notes.append(Note(beat, 0.25, KEYS["kick"], self._volume(passage, 92)))
        return notes

    def _pickup(self, passage: Passage, beat: float) -> list[Note]:
        """Two strokes at the end of a four-bar phrase."""
        voice = {"timbales": "timbale", "roll": "open", "hats": "open"}.get(self.style.fill, "snare")
        if self.frame.compound or (voice != "timbale" and voice not in self.grids):
            return []
        return [
            Note(beat + 0.25 * step, 0.2, KEYS[voice], self._volume(passage, 68 + 14 * step))
            for step in range(2)
        ]

    def _last_bar(self, passage: Passage, start: float) -> list[Note]:
        notes = [Note(start, 1.0, KEYS["kick"], self._volume(passage, 100))] if "kick" in self.grids else []
        if self.style.crash:
            notes.append(Note(start, 2.0, KEYS[self.style.crash], self._volume(passage, 100)))
        return notes
