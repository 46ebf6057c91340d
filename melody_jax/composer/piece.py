"""A composed piece: notes, tracks, facts and production, shared by the composer, the renderer and the captions.

Times are in felt beats, so that seconds = beats * 60 / `Facts.tempo_bpm` in every metre. A beat is a quarter note in
2/4, 3/4, 4/4, 5/4 and 7/8 (3.5 beats per bar), and a dotted quarter in 6/8 and 12/8 (2 and 4 beats per bar).
"""

from dataclasses import dataclass
from typing import NamedTuple


class Note(NamedTuple):
    """One note: `start` and `duration` in beats, MIDI `pitch` (drums: a GM percussion key), `velocity` 1..127."""

    start: float
    duration: float
    pitch: int
    velocity: int


@dataclass(frozen=True)
class Track:
    """The part of one instrument, a key of `INSTRUMENTS` ("drums" for the kit); `role` and `effects` are keys of
    `render.BALANCE` and `effects.EFFECTS`."""

    role: str
    instrument: str
    notes: tuple[Note, ...]
    gain_db: float
    effects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A section of the form, such as "verse", of `bars` bars from `start_beat` on."""

    name: str
    start_beat: float
    bars: int


@dataclass(frozen=True)
class Facts:
    """Properties that the piece has by construction: the source of captions and of auxiliary training targets.

    `instruments` are names of `INSTRUMENTS` in order of prominence, `lead` is the first of them, `key` is one of
    "C".."B" with sharps, `tempo_bpm` the perceived beats per minute, `rhythmic` is false without a steady pulse,
    `energy` is low, medium or high.
    """

    genre: str
    mood: str
    tempo_bpm: float
    key: str
    mode: str
    metre: str
    instruments: tuple[str, ...]
    lead: str
    sections: tuple[str, ...]
    rhythmic: bool
    energy: str


@dataclass(frozen=True)
class Production:
    """How to render the piece. `reverb`, `master_drive` and `brightness` lie in 0..1 (brightness 0.5 is neutral).

    `room` is "dry" or a key of `rooms.ROOMS`, `drum_kit` one of `drum_kits.KITS`, `renderer` "synth" or "soundfont".
    `swing` (0 straight .. 1 triplet) is already applied to the start times of the notes.
    """

    room: str
    reverb: float
    drum_kit: str
    lofi: bool
    sidechain: bool
    swing: float
    renderer: str
    master_drive: float
    brightness: float


@dataclass(frozen=True)
class Piece:
    """A piece of `seconds` seconds, with everything that the renderer and the captions need.

    `progression_hashes` and `melody_hashes` are fingerprints of its chord progressions and motifs; splits share none.
    """

    seed: int
    seconds: float
    facts: Facts
    tracks: tuple[Track, ...]
    sections: tuple[Section, ...]
    production: Production
    progression_hashes: tuple[int, ...] = ()
    melody_hashes: tuple[int, ...] = ()

    @property
    def seconds_per_beat(self) -> float:
        """Length of a felt beat, seconds."""
        return 60.0 / self.facts.tempo_bpm
