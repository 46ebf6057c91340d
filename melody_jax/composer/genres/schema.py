"""Genres as data: instruments, tempo, harmony, rhythms, form and production."""

from dataclasses import dataclass, field

from melody_jax.composer.drum_parts import DrumStyle
from melody_jax.composer.melody import MelodyStyle

Weights = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class LayerPart:
    """An optional accompanying part.

    `instruments` has weights of names of `INSTRUMENTS`, or of "lead" for the second hand of the lead player;
    `patterns` are those of `comping`. The part joins a piece with probability `chance` and plays in sections with an
    energy of at least `enters`. `gain` is in dB; `strum` is the time between the notes of a chord, seconds.
    """

    role: str
    instruments: Weights
    patterns: tuple[str, ...]
    chance: float = 1.0
    enters: float = 0.0
    gain: float = -7.0
    centre: int = 60
    voices: int = 3
    style: str = "close"
    gate: float = 0.9
    strum: float = 0.0
    rootless: bool = False
    loud: float = 80
    effects: Weights = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BassPart:
    """The bass part: instruments, patterns of `bass`, sounding fraction of a note, register and probability."""

    instruments: Weights
    patterns: tuple[str, ...]
    gate: float = 0.9
    centre: float = 40
    chance: float = 1.0
    enters: float = 0.0
    gain: float = -4.0
    effects: Weights = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Genre:
    """A genre.

    `tempo` is in beats per minute; `cycle` is the length of a progression in bars; `colours` are weights of the levels
    of `theory.coloured`, `forms` of names of `FORMS`, `counter` of the kinds of counter lines (thirds, octave, guide,
    answer, none); `timing` is the spread of the players' timing in seconds; `swing_unit` is the length of a swung pair
    in beats.
    """

    name: str
    tempo: tuple[float, float]
    metres: Weights = field(default_factory=lambda: {"4/4": 1.0})
    modes: Weights
    grammars: Weights
    chords_per_bar: dict[float, float] = field(default_factory=lambda: {1.0: 1.0})
    cycle: dict[int, float] = field(default_factory=lambda: {4: 1.0})
    colours: Weights = field(default_factory=lambda: {"triad": 1.0})
    inversions: float = 0.1
    forms: Weights
    leads: Weights
    melodies: tuple[MelodyStyle, ...]
    lead_register: int = 0
    lead_effects: Weights = field(default_factory=dict)
    lead_rest: float = 0.0
    counter: Weights = field(default_factory=lambda: {"none": 1.0})
    counter_instruments: Weights = field(default_factory=dict)
    bass: BassPart | None = None
    layers: tuple[LayerPart, ...] = ()
    drums: tuple[DrumStyle, ...] = ()
    drums_chance: float = 1.0
    drums_gain: float = -3.0
    kits: Weights = field(default_factory=lambda: {"acoustic": 1.0})
    swing: tuple[float, float] = (0.0, 0.0)
    swing_unit: float = 1.0
    timing: float = 0.006
    steady: float = 1.0
    moods: Weights = field(default_factory=dict)
    energy: float = 0.5
    rooms: Weights = field(default_factory=lambda: {"studio": 1.0})
    reverb: tuple[float, float] = (0.1, 0.3)
    lofi: float = 0.0
    sidechain: float = 0.0
    synth: float = 0.0
    drive: tuple[float, float] = (0.0, 0.15)
    brightness: tuple[float, float] = (0.4, 0.6)
    endings: float = 0.4


# Name -> (section, energy, theme) in order; a piece can start anywhere in the cycle.
FORMS: dict[str, tuple[tuple[str, float, int], ...]] = {
    "song": (("verse", 0.5, 0), ("chorus", 0.85, 1), ("verse", 0.55, 0), ("chorus", 0.9, 1), ("bridge", 0.5, 2),
        ("chorus", 1.0, 1)),
    "intro song": (("intro", 0.4, 0), ("verse", 0.55, 0), ("chorus", 0.9, 1), ("verse", 0.6, 0), ("chorus", 0.95, 1)),
    "strain": (("A", 0.5, 0), ("A", 0.55, 0), ("B", 0.65, 1), ("A", 0.6, 0)),
    "binary": (("A", 0.5, 0), ("A", 0.55, 0), ("B", 0.6, 1), ("B", 0.65, 1)),
    "head": (("head", 0.55, 0), ("solo", 0.7, 1), ("solo", 0.85, 2), ("head", 0.65, 0)),
    "choruses": (("theme", 0.55, 0), ("solo", 0.75, 1), ("solo", 0.85, 2), ("theme", 0.7, 0)),
    "build": (("intro", 0.45, 0), ("build", 0.6, 0), ("drop", 1.0, 1), ("breakdown", 0.3, 0), ("drop", 0.95, 1)),
    "groove": (("groove", 0.6, 0), ("groove", 0.75, 0), ("break", 0.4, 1), ("groove", 0.9, 1)),
    "theme": (("theme", 0.5, 0), ("theme", 0.6, 0), ("development", 0.75, 1), ("theme", 0.8, 0)),
    "drift": (("A", 0.35, 0), ("B", 0.45, 1), ("A", 0.4, 0), ("C", 0.5, 2)),
    "rise": (("opening", 0.4, 0), ("rise", 0.65, 0), ("climax", 1.0, 1), ("aftermath", 0.4, 0)),
    "beat": (("loop", 0.5, 0), ("loop", 0.6, 0), ("bridge", 0.42, 1), ("loop", 0.65, 0)),
}  # fmt: skip
