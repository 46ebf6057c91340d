"""Where the parts of a piece stand between left and right: pans, widths, doubled guitars, the seats of an orchestra.

The renderer works on channels (C, T). In mono C is 1 and nothing here is used. In stereo a part begins as one channel,
or as two (a piano, a section, two takes of a guitar), and `placed` gives both sides of it.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from melody_jax.composer.instruments import Instrument
from melody_jax.composer.piece import Piece, Track

LEFT = 0
RIGHT = 1
Hits = Sequence[tuple[float, float, int, int]]

# Range of the distance from the centre by role, 0..1.
_DISTANCES = {
    "melody": (0.0, 0.08),
    "counter": (0.25, 0.5),
    "chords": (0.2, 0.45),
    "arp": (0.3, 0.6),
    "pad": (0.0, 0.1),
}
# Seats of an orchestra, seen from the hall: -1 left .. 1 right.
_SEATS = {
    "violin": -0.55,
    "strings": -0.1,
    "viola": 0.2,
    "cello": 0.45,
    "double bass": 0.6,
    "harp": -0.7,
    "piano": -0.3,
    "flute": -0.15,
    "oboe": 0.1,
    "clarinet": -0.2,
    "bassoon": 0.2,
    "french horn": -0.35,
    "trumpet": 0.3,
    "trombone": 0.4,
    "tuba": 0.5,
    "timpani": 0.1,
}
# Seen from the hall, by a right-handed drummer: General MIDI key -> -1 left .. 1 right.
_DRUM_PANS = {
    **dict.fromkeys((42, 44, 46), 0.35),
    **dict.fromkeys((51, 53, 59), -0.4),
    **{49: 0.5, 57: -0.55, 52: -0.6, 55: 0.25},
    **{50: 0.35, 48: 0.2, 47: 0.05, 45: -0.1, 43: -0.25, 41: -0.4},
}
_CENTRED_DRUMS = frozenset((31, 35, 36, 37, 38, 39, 40, 86, 87))
_SPREAD_FAMILIES = frozenset(("keys", "mallets", "organ"))
_DOUBLED = frozenset(("distorted guitar", "overdriven guitar"))
_SOMETIMES_DOUBLED = frozenset(("acoustic guitar", "steel guitar", "electric guitar", "muted guitar"))


@dataclass(frozen=True)
class Place:
    """`pan` -1 left .. 1 right, `width` 0..1 of a part with two channels, and whether two takes of it play."""

    pan: float = 0.0
    width: float = 1.0
    doubled: bool = False


def places(piece: Piece) -> tuple[Place, ...]:
    """The places of the tracks of a piece. They are drawn from its seed, and do not change its notes."""
    side = -1.0 if np.random.default_rng([piece.seed, 2000]).random() < 0.5 else 1.0
    chosen = []
    for index, track in enumerate(piece.tracks):
        place = _place(piece, index, track, side)
        if place.pan:
            side = -side
        chosen.append(place)
    return tuple(chosen)


def _place(piece: Piece, index: int, track: Track, side: float) -> Place:
    rng = np.random.default_rng([piece.seed, 2001, index])
    distance = rng.uniform(*_DISTANCES.get(track.role, (0.0, 0.0)))
    width = rng.uniform(0.7, 1.0)
    sometimes = track.role == "chords" and rng.random() < 0.5
    if track.role in ("bass", "drums"):
        return Place(width=width if track.role == "drums" else 0.0)
    if piece.production.room == "hall" and track.instrument in _SEATS:
        return Place(pan=_SEATS[track.instrument], width=0.6 * width)
    if track.instrument in _DOUBLED or (sometimes and track.instrument in _SOMETIMES_DOUBLED):
        return Place(width=width, doubled=True)
    return Place(pan=side * distance, width=width)


def second_take(notes: Hits, rng: np.random.Generator) -> list[tuple[float, float, int, int]]:
    """The same notes (start s, duration s, pitch, velocity) played once more: up to 20 ms and a little force apart."""
    played = []
    for start, duration, pitch, velocity in notes:
        later = float(np.clip(rng.normal(0, 0.008), -0.02, 0.02))
        harder = int(np.clip(velocity + rng.integers(-7, 8), 1, 127))
        played.append((max(0.0, start + later), duration, pitch, harder))
    return played


def is_spread(instrument: Instrument) -> bool:
    """Whether low keys stand on the left and high keys on the right."""
    return instrument.family in _SPREAD_FAMILIES or instrument.name == "harp"


def key_pans(notes: Hits) -> np.ndarray:
    """Pans (N,) of the notes of a keyboard: the mean pitch is in the centre, 30 semitones reach a side."""
    pitches = np.array([pitch for _, _, pitch, _ in notes], float)
    return np.clip((pitches - pitches.mean()) / 30, -0.8, 0.8)


def drum_pans(hits: Hits) -> np.ndarray:
    """Pans (N,) of hits with General MIDI percussion keys."""
    return np.array([_drum_pan(key) for _, _, key, _ in hits], float)


def _drum_pan(key: int) -> float:
    if key in _CENTRED_DRUMS:
        return 0.0
    if key in _DRUM_PANS:
        return _DRUM_PANS[key]
    return zlib.crc32(f"percussion {key // 2}".encode()) / 2**32 * 1.2 - 0.6


def gains(pan: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gains of left and right for pans -1..1: their mean power is 1, and both are 1 in the centre."""
    angle = (np.asarray(pan) + 1) * np.pi / 4
    return np.sqrt(2) * np.cos(angle), np.sqrt(2) * np.sin(angle)


def placed(channels: np.ndarray, place: Place) -> np.ndarray:
    """Places a part, (1, T) or (2, T), between left and right: float32 (2, T)."""
    left, right = (np.float32(gain) for gain in gains(place.pan))
    if len(channels) == 1:
        return np.concatenate([left * channels, right * channels])
    middle = channels.mean(axis=0)
    side = np.float32(0.5 * place.width) * (channels[LEFT] - channels[RIGHT])
    return np.stack([left * (middle + side), right * (middle - side)])
