"""Scales, modes, chords and voice leading. Pitches are MIDI numbers, pitch classes are semitones above the tonic."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

MODES: dict[str, tuple[int, ...]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "lydian": (0, 2, 4, 6, 7, 9, 11),
}
MINOR_MODES = ("minor", "dorian", "phrygian")

QUALITIES: dict[str, tuple[int, ...]] = {
    "": (0, 4, 7),
    "m": (0, 3, 7),
    "dim": (0, 3, 6),
    "aug": (0, 4, 8),
    "5": (0, 7),
    "sus2": (0, 2, 7),
    "sus4": (0, 5, 7),
    "6": (0, 4, 7, 9),
    "m6": (0, 3, 7, 9),
    "add9": (0, 4, 7, 2),
    "madd9": (0, 3, 7, 2),
    "7": (0, 4, 7, 10),
    "maj7": (0, 4, 7, 11),
    "m7": (0, 3, 7, 10),
    "mM7": (0, 3, 7, 11),
    "m7b5": (0, 3, 6, 10),
    "dim7": (0, 3, 6, 9),
    "7sus4": (0, 5, 7, 10),
    "9": (0, 4, 7, 10, 2),
    "maj9": (0, 4, 7, 11, 2),
    "m9": (0, 3, 7, 10, 2),
    "m11": (0, 3, 7, 10, 5),
    "69": (0, 4, 7, 9, 2),
    "13": (0, 4, 10, 2, 9),
    "9sus4": (0, 5, 7, 10, 2),
    "7b9": (0, 4, 7, 10, 1),
    "7#9": (0, 4, 7, 10, 3),
    "7b13": (0, 4, 10, 8, 2),
    "maj7#11": (0, 4, 7, 11, 6),
}

_COLOURS: dict[tuple[str, str], tuple[str, ...]] = {
    ("", "triad"): ("",),
    ("m", "triad"): ("m",),
    ("dim", "triad"): ("dim",),
    ("aug", "triad"): ("aug",),
    ("", "power"): ("5",),
    ("m", "power"): ("5",),
    ("dim", "power"): ("5",),
    ("", "add"): ("", "add9", "add9", "sus2"),
    ("m", "add"): ("m", "madd9", "m7", "sus2"),
    ("dim", "add"): ("dim", "m7b5"),
    ("", "sixth"): ("6", "6", "", "7"),
    ("m", "sixth"): ("m6", "m7", "m"),
    ("dim", "sixth"): ("dim7", "m7b5"),
    ("", "seventh"): ("maj7", "7", "maj7", "7", "6"),
    ("m", "seventh"): ("m7",),
    ("dim", "seventh"): ("m7b5",),
    ("", "ninth"): ("maj9", "9", "69", "13", "maj7", "7"),
    ("m", "ninth"): ("m9", "m11", "m7", "m9"),
    ("dim", "ninth"): ("m7b5",),
}


@lru_cache(maxsize=1024)
def _tones(root: int, quality: str) -> tuple[int, ...]:
    return tuple((root + interval) % 12 for interval in QUALITIES[quality])


class Chord(NamedTuple):
    """A chord of the key: `root` and `bass` in semitones above the tonic, `quality` a key of `QUALITIES`."""

    root: int
    quality: str
    bass: int

    @property
    def tones(self) -> tuple[int, ...]:
        """Pitch classes above the tonic, root first."""
        return _tones(self.root, self.quality)


def triad(mode: str, degree: int) -> tuple[int, str]:
    """Returns root (semitones above the tonic) and quality of the diatonic triad on a degree 0..6."""
    scale = MODES[mode]
    root = scale[degree % 7]
    third, fifth = ((scale[(degree + step) % 7] - root) % 12 for step in (2, 4))
    return root, {(4, 7): "", (3, 7): "m", (3, 6): "dim", (4, 8): "aug"}[(third, fifth)]


def coloured(root: int, quality: str, level: str, scale: Sequence[int], choice: float) -> str:
    """Extends a triad to the given level (triad, power, add, sixth, seventh, ninth) with notes of the scale only.

    `choice` in [0, 1) selects among the candidates. A major triad outside the scale (a borrowed dominant) becomes a
    dominant seventh if the level is sixth, seventh or ninth.
    """
    pool = set(scale)
    if any((root + interval) % 12 not in pool for interval in QUALITIES[quality]):
        return "7" if quality == "" and level in ("seventh", "ninth", "sixth") else quality
    options = [
        name
        for name in _COLOURS.get((quality, level), (quality,))
        if name == "5" or all((root + interval) % 12 in pool for interval in QUALITIES[name])
    ] or [quality]
    return options[int(choice * len(options))]


@lru_cache(maxsize=4096)
def chord_scale(scale: tuple[int, ...], chord: Chord) -> tuple[int, ...]:
    """The scale with the notes that the chord alters replaced: a raised leading note removes the flat seventh."""
    tones = set(chord.tones)
    unaltered = [
        pc for pc in scale if pc in tones or not ({(pc + 1) % 12, (pc - 1) % 12} & (tones - set(scale)))
    ]
    return tuple(sorted(set(unaltered) | tones))


@lru_cache(maxsize=8192)
def ladder(tonic: int, pitch_classes: tuple[int, ...], low: int, high: int) -> tuple[int, ...]:
    """All MIDI pitches from `low` to `high` with one of `pitch_classes` above the tonic, ascending."""
    classes = {(tonic + pc) % 12 for pc in pitch_classes}
    return tuple(pitch for pitch in range(low, high + 1) if pitch % 12 in classes)


def nearest(pitch: float, rungs: Sequence[int]) -> int:
    """The nearest of the ascending rungs to the pitch; of two equally near ones, the lower."""
    above = bisect_left(rungs, pitch)
    if above == 0:
        return rungs[0]
    if above == len(rungs):
        return rungs[-1]
    return rungs[above] if rungs[above] - pitch < pitch - rungs[above - 1] else rungs[above - 1]


def place(pitch_class: int, around: float, low: int, high: int) -> int:
    """The MIDI pitch of an absolute pitch class that is nearest to `around`, inside low..high (at least an octave)."""
    pitch = pitch_class % 12 + 12 * round((around - pitch_class % 12) / 12)
    while pitch < low:
        pitch += 12
    while pitch > high:
        pitch -= 12
    return pitch


def essential_tones(chord: Chord, voices: int, rootless: bool) -> tuple[int, ...]:
    """The `voices` most important pitch classes: root (unless `rootless`), third, seventh and extensions, then fifth.

    A `rootless` voicing puts the root last. Triads keep the order root, third, fifth.
    """
    root, *rest = chord.tones
    third = rest[:1]
    colours = rest[2:]
    fifth = rest[1:2]
    if len(QUALITIES[chord.quality]) <= 3:
        ordered = [root, *third, *fifth]
    elif rootless:
        ordered = [*third, *colours, *fifth, root]
    else:
        ordered = [root, *third, *colours, *fifth]
    return tuple(ordered[:voices])


def _revoiced(closed: list[int], style: str) -> list[int]:
    if style == "open" and len(closed) >= 3:
        return sorted([closed[0], closed[2], closed[1] + 12, *closed[3:]])
    if style == "drop2" and len(closed) >= 4:
        return sorted([closed[-2] - 12, *closed[:-2], closed[-1]])
    return closed


@lru_cache(maxsize=8192)
def voicing(
    tonic: int,
    tones: tuple[int, ...],
    previous: tuple[int, ...],
    centre: float,
    low: int,
    high: int,
    style: str = "close",
) -> tuple[int, ...]:
    """The inversion of the chord that moves least from `previous` and stays near `centre`, inside low..high.

    `tones` are classes above the tonic; `style` is close, open or drop2. Returns ascending MIDI pitches.
    """
    best: tuple[float, tuple[int, ...]] = (float("inf"), ())
    classes = sorted({(tonic + tone) % 12 for tone in tones})
    for first in range(len(classes)):
        order = _revoiced(classes[first:] + [pc + 12 for pc in classes[:first]], style)
        middle = sum(order) / len(order)
        octave = round((centre - middle) / 12)
        for shift in (12 * octave - 12, 12 * octave, 12 * octave + 12):
            pitches = tuple(pc + shift for pc in order)
            outside = max(0, low - pitches[0]) + max(0, pitches[-1] - high)
            cost = 20 * outside + 0.6 * abs(middle + shift - centre) + movement(previous, pitches)
            if cost < best[0]:
                best = (cost, pitches)
    return tuple(pitch for pitch in best[1] if low <= pitch <= high) or best[1]


def movement(previous: Sequence[int], pitches: Iterable[int]) -> float:
    """The sum of the voices' distances to the nearest previous voice, semitones; 0 without previous voices."""
    if not previous:
        return 0.0
    return float(sum(min(abs(pitch - old) for old in previous) for pitch in pitches))
