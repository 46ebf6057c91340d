"""A composed piece: notes, tracks, facts and production, shared by the composer, the renderer and the captions.

All times are in felt beats, so that in every metre seconds = beats * 60 / `Facts.tempo_bpm`: a beat is a quarter note
in 3/4, 4/4, 5/4 and 7/8 (whose bar has 3.5 beats) and a dotted quarter in 6/8 and 12/8 (whose bars have 2 and 4 beats).
"""

from dataclasses import dataclass
from typing import NamedTuple

ROLES = ("melody", "bass", "chords", "pad", "arp", "counter", "drums")
ROOMS = ("dry", "studio", "room", "hall", "plate")
DRUM_KITS = ("acoustic", "electronic", "808", "brushes", "chip")
RENDERERS = ("synth", "soundfont")
EFFECTS = (
    "distortion",
    "overdrive",
    "chorus",
    "tremolo",
    "delay",
    "lowpass",
    "highpass",
    "bitcrush",
    "wah",
    "phaser",
    "vibrato",
    "autofilter",
)


class Note(NamedTuple):
    """One note: `start` and `duration` in beats, MIDI `pitch` (drums: a GM percussion key), `velocity` 1..127."""

    start: float
    duration: float
    pitch: int
    velocity: int


@dataclass(frozen=True)
class Track:
    """One instrument's part: `instrument` is a key of `INSTRUMENTS` ("drums" for the kit), `effects` of `EFFECTS`."""

    role: str
    instrument: str
    notes: tuple[Note, ...]
    gain_db: float
    effects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A part of the form, such as "verse", from `start_beat` on, `bars` bars long."""

    name: str
    start_beat: float
    bars: int


@dataclass(frozen=True)
class Facts:
    """What is true of the piece by construction: the source of captions and of auxiliary training targets.

    `instruments` are names of `INSTRUMENTS` ordered by prominence, `lead` is the first, `key` is one of "C".."B" with
    sharps, `tempo_bpm` the perceived beats per minute, `rhythmic` False where no steady pulse is to be heard,
    `energy` one of low, medium, high.
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

    `swing` (0 straight .. 1 triplet) is already applied to the note starts: it is kept as a fact.
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
    """A whole piece of `seconds` seconds: everything the renderer and the captions need.

    `progression_hashes` and `melody_hashes` fingerprint the chord progressions and motifs it was made from: splits
    share none.
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
        """Seconds a felt beat lasts."""
        return 60.0 / self.facts.tempo_bpm
