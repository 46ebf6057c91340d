"""Chord progressions from grammars: loops, functional phrases, jazz turnarounds, blues, vamps, riffs, sequences.

Each grammar returns `slots` chords in a mode; `draw_progression` draws until the fingerprint belongs to the split.
"""

from collections.abc import Callable

from melody_jax.composer.dice import Dice
from melody_jax.composer.splits import draw_within, stable_hash
from melody_jax.composer.theory import MODES, Chord, coloured, triad

Progression = tuple[Chord, ...]

# Degree -> weights of the next degree, per mode, in loops of popular music.
_LOOPS: dict[str, dict[int, dict[int, float]]] = {
    "major": {
        0: {3: 3, 4: 3, 5: 3, 1: 1, 2: 1},
        1: {4: 4, 3: 1, 5: 1, 0: 1},
        2: {5: 3, 3: 3, 1: 1},
        3: {0: 3, 4: 4, 1: 1, 5: 2},
        4: {0: 3, 5: 3, 3: 3},
        5: {3: 4, 4: 2, 1: 2, 2: 1, 0: 1},
    },
    "minor": {
        0: {5: 4, 6: 3, 3: 3, 2: 2, 4: 1},
        2: {6: 3, 5: 3, 3: 2, 0: 1},
        3: {0: 2, 6: 2, 4: 2, 5: 2},
        4: {0: 4, 5: 2},
        5: {6: 4, 2: 3, 3: 2, 0: 1, 4: 1},
        6: {0: 3, 5: 3, 2: 2, 3: 2},
    },
    "dorian": {0: {3: 5, 6: 3, 2: 2, 1: 2, 4: 1}, 1: {2: 2, 0: 3}, 2: {3: 3, 6: 2, 0: 1}, 3: {0: 5, 6: 2, 4: 1},
               4: {3: 2, 0: 2, 6: 1}, 6: {0: 3, 3: 3}},
    "mixolydian": {0: {6: 5, 3: 3, 4: 1, 1: 1}, 1: {3: 2, 6: 2, 0: 1}, 3: {0: 5, 6: 2, 1: 1}, 4: {3: 2, 6: 2, 0: 1},
                   6: {3: 5, 0: 3}},
    "phrygian": {0: {1: 5, 6: 3, 5: 1, 2: 1}, 1: {0: 5, 2: 2, 6: 1}, 2: {1: 3, 0: 2}, 5: {6: 2, 1: 2, 0: 1},
                 6: {0: 3, 5: 2, 1: 2}},
    "lydian": {0: {1: 5, 4: 2, 5: 1, 6: 1, 2: 1}, 1: {0: 4, 4: 2, 5: 1, 2: 1}, 2: {1: 2, 5: 2}, 4: {0: 3, 1: 3, 5: 1},
               5: {1: 3, 0: 1, 4: 1}, 6: {0: 2, 5: 2}},
}  # fmt: skip

# Minor or not -> degree -> weights of the next degree in functional harmony.
_FUNCTIONS: dict[bool, dict[int, dict[int, float]]] = {
    False: {
        0: {3: 3, 4: 2, 5: 3, 1: 2, 2: 0.5},
        1: {4: 5, 6: 0.3},
        2: {5: 3, 3: 2},
        3: {4: 3, 1: 2, 0: 2},
        4: {0: 4, 5: 2, 3: 0.3},
        5: {1: 3, 3: 3, 4: 1, 2: 0.3},
        6: {0: 4, 2: 0.5},
    },
    True: {
        0: {3: 3, 4: 2, 5: 3, 1: 0.7, 2: 1.5, 6: 1.5},
        1: {4: 5},
        2: {5: 3, 3: 2, 6: 1},
        3: {4: 3, 0: 2, 6: 1, 1: 0.5},
        4: {0: 4, 5: 1.5},
        5: {3: 3, 1: 1, 2: 1.5, 4: 1.5, 6: 1},
        6: {2: 3, 0: 1, 5: 1},
    },
}

# Weights of two-chord cells of jazz harmony: semitones above the tonic and qualities.
_JAZZ_MAJOR: dict[tuple[tuple[int, str], ...], float] = {
    ((2, "m9"), (7, "13")): 5, ((2, "m7"), (7, "7b9")): 2, ((2, "m9"), (1, "9")): 1.5, ((0, "maj9"), (9, "7b9")): 3,
    ((0, "maj7"), (9, "m7")): 2, ((4, "m7"), (9, "7b13")): 2.5, ((4, "m7"), (3, "dim7")): 1.5,
        ((5, "maj9"), (5, "m6")): 1.5,
    ((5, "maj7"), (10, "9")): 1.5, ((0, "69"), (0, "69")): 2, ((2, "7"), (2, "m7")): 1, ((7, "m9"), (0, "13")): 1.5,
    ((5, "maj7"), (6, "dim7")): 1, ((11, "m7b5"), (4, "7b9")): 1.2, ((9, "m7"), (2, "9")): 1.5,
        ((0, "maj9"), (1, "dim7")): 1,
    ((8, "maj7"), (7, "7b13")): 0.6, ((3, "maj7"), (8, "maj7")): 0.5, ((10, "m7"), (3, "9")): 0.6,
}  # fmt: skip
_JAZZ_MINOR: dict[tuple[tuple[int, str], ...], float] = {
    ((2, "m7b5"), (7, "7b9")): 5, ((2, "m7b5"), (7, "7b13")): 2, ((0, "m9"), (0, "m6")): 3,
        ((0, "mM7"), (0, "m7")): 1.5,
    ((5, "m9"), (10, "13")): 2, ((3, "maj7"), (8, "maj9")): 2, ((8, "9"), (7, "7b9")): 2, ((5, "m9"), (5, "m6")): 1.5,
    ((0, "m7"), (9, "m7b5")): 1, ((3, "maj7"), (0, "7b9")): 1, ((2, "m7b5"), (1, "9")): 1, ((0, "m9"), (5, "9")): 1.5,
    ((10, "9"), (9, "m7b5")): 0.6,
}  # fmt: skip


def _loop(dice: Dice, mode: str, slots: int) -> list[tuple[int, str]]:
    table = _LOOPS[mode]
    unit = min(slots, dice.pick({4: 6.0, 2: 1.0, 3: 0.7, 8: 0.6}))
    first = 0 if dice.chance(0.65) else dice.among([d for d in table if d != 0])
    degrees = [first]
    while len(degrees) < unit:
        degrees.append(dice.pick(table[degrees[-1]]))
    if degrees[-1] == degrees[0] and unit > 1:
        degrees[-1] = dice.pick({d: w for d, w in table[degrees[-2]].items() if d != degrees[0]} or {4: 1.0})
    chords = [triad(mode, degrees[i % unit]) for i in range(slots)]
    if slots >= 2 * unit and dice.chance(0.4):
        chords[-1] = triad(mode, dice.among(list(table[degrees[(slots - 2) % unit]])))
    if mode == "minor" and dice.chance(0.3):
        chords = [(root, "" if root == 7 else quality) for root, quality in chords]
    return chords


def _functional(
    dice: Dice, mode: str, slots: int, allowed: tuple[int, ...] = tuple(range(7))
) -> list[tuple[int, str]]:
    minor = mode in ("minor", "dorian", "phrygian")
    table = _FUNCTIONS[minor]
    degrees = [0 if dice.chance(0.85) else dice.among([d for d in (5, 3, 4) if d in allowed])]
    while len(degrees) < slots:
        steps = {d: w for d, w in table[degrees[-1]].items() if d in allowed} or {0: 1.0}
        if degrees[-1] in (0, 3, 4) and dice.chance(0.12):
            steps = {degrees[-1]: 1.0}
        degrees.append(dice.pick(steps))
    if slots >= 3:
        ending = dice.pick({"authentic": 4.0, "half": 3.0, "plagal": 0.8, "deceptive": 0.5})
        if ending == "half":
            degrees[-2:] = [dice.among([d for d in (1, 3, 5, 0) if d in allowed]), 4]
        elif ending == "plagal":
            degrees[-2:] = [3, 0]
        else:
            before = dice.among([d for d in (1, 3) if d in allowed])
            degrees[-3:] = [before, 4, 0 if ending == "authentic" or 5 not in allowed else 5]
    chords = [triad(mode, degree) for degree in degrees]
    return [(7, "") if root == 7 and dice.chance(0.9) else (root, quality) for root, quality in chords]


def _art(dice: Dice, mode: str, slots: int) -> list[tuple[int, str]]:
    """Classical phrases: functional harmony with applied dominants."""
    chords = _functional(dice, mode, slots)
    for i in range(len(chords) - 1):
        root, quality = chords[i + 1]
        if i and root not in (0, 11) and quality != "dim" and chords[i][0] != root and dice.chance(0.15):
            chords[i] = dice.pick({((root + 7) % 12, ""): 3.0, ((root + 11) % 12, "dim7"): 1.0})
    return chords


def _sequence(dice: Dice, mode: str, slots: int) -> list[tuple[int, str]]:
    """Baroque sequences: a circle of fifths, a descending bass or rising thirds, then a cadence."""
    step = dice.pick({3: 4.0, 6: 1.5, 5: 1.0, 4: 1.0})
    degree = dice.pick({0: 5.0, 5: 1.0, 3: 1.0})
    degrees = [degree]
    alternate = dice.chance(0.4)
    for i in range(slots - 1):
        shift = step if not (alternate and i % 2) else dice.pick({1: 2.0, step: 1.0, 3: 1.0})
        degrees.append((degrees[-1] + shift) % 7)
    if slots >= 4:
        degrees[-3:] = [dice.among((1, 3)), 4, 0] if dice.chance(0.6) else [0, dice.among((1, 3, 5)), 4]
    chords = [triad(mode, d) for d in degrees]
    return [(7, "") if root == 7 and mode != "mixolydian" else (root, quality) for root, quality in chords]


def _roots(dice: Dice, mode: str, slots: int) -> list[tuple[int, str]]:
    """Folk and country: mainly the three primary chords, sometimes the sixth or second degree."""
    allowed = dice.pick({(0, 3, 4): 4.0, (0, 3, 4, 5): 3.0, (0, 1, 3, 4, 5): 2.0})
    if mode in ("mixolydian", "dorian", "phrygian", "lydian"):
        return _loop(dice, mode, slots)
    chords = _functional(dice, mode, slots, allowed)
    if slots >= 4 and dice.chance(0.25) and mode == "major":
        chords[slots // 2 - 1 : slots // 2 + 1] = [(2, ""), (7, "")]
    return chords


def _jazz(dice: Dice, mode: str, slots: int) -> list[tuple[int, str]]:
    cells = _JAZZ_MINOR if mode in ("minor", "dorian", "phrygian") else _JAZZ_MAJOR
    chords: list[tuple[int, str]] = []
    home = (0, "m9") if cells is _JAZZ_MINOR else (0, "maj9")
    while len(chords) < slots:
        chords += dice.pick(cells)
        if chords[-1][0] in (7, 1) and dice.chance(0.6):
            chords += [
                home,
                dice.pick({home: 2.0, (9, "7b9"): 1.0, (0, "69" if home[1] == "maj9" else "m6"): 1.0}),
            ]
    if dice.chance(0.55):
        chords[0] = home
    chords = chords[:slots]
    if slots >= 4 and dice.chance(0.6):
        chords[-2:] = [(2, "m9"), (7, "13")] if cells is _JAZZ_MAJOR else [(2, "m7b5"), (7, "7b9")]
    return chords


def _blues(dice: Dice, mode: str, slots: int) -> list[tuple[int, str]]:
    """Twelve-bar blues (or its beginning) with common variants; minor keys give a minor blues."""
    if mode in ("minor", "dorian", "phrygian"):
        tonic = "m7"
        four = dice.pick({"m7": 3.0, "m9": 1.0, "9": 1.0})
        five = dice.pick({"7": 2.0, "7#9": 1.5, "7b9": 1.0})
    else:
        tonic, four, five = (dice.pick({"7": 3.0, "9": 2.0, "13": 1.0}) for _ in range(3))
    i = (0, tonic)
    iv = (5, four)
    v = (7, five)
    bars = [i, i, i, i, iv, iv, i, i, v, iv, i, v]
    if dice.chance(0.5):
        bars[1] = iv
    if dice.chance(0.25):
        bars[5] = (6, "dim7")
    if dice.chance(0.25):
        bars[7] = (9, "7")
    if mode in ("minor", "phrygian") and dice.chance(0.6):
        bars[8:10] = [(8, "7"), v]
    elif dice.chance(0.3):
        bars[8:10] = [(2, "m7"), v]
    bars[10:] = dice.among([[i, v], [i, i], [i, (8, "7")], [(3, "7"), (8, "7")], [i, iv]])
    return [bars[k % 12] for k in range(slots)]


def _vamp(dice: Dice, mode: str, slots: int) -> list[tuple[int, str]]:
    """One to four long chords: house, techno, ambient, funk."""
    count = dice.pick({1: 2.0, 2: 3.5, 4: 1.5})
    degrees = [0]
    while len(degrees) < count:
        degrees.append(dice.pick(_LOOPS[mode].get(degrees[-1], {0: 1.0})))
    hold = max(1, slots // len(degrees))
    return [triad(mode, degrees[min(i // hold, count - 1)]) for i in range(slots)]


def _riff(dice: Dice, mode: str, slots: int) -> list[tuple[int, str]]:
    """Metal and hard rock: roots of power chords, with frequent returns to the tonic and semitone neighbours."""
    palette = {
        0: 5.0,
        3: 2.0,
        5: 2.0,
        7: 1.5,
        8: 2.0,
        10: 2.0,
        1: 2.0 if mode == "phrygian" else 0.7,
        6: 0.5,
        11: 0.2,
    }
    roots = [0]
    while len(roots) < slots:
        roots.append(dice.pick({root: w for root, w in palette.items() if root != roots[-1]}))
    return [(root, "") for root in roots]


def _plane(dice: Dice, mode: str, slots: int) -> list[tuple[int, str]]:
    """Cinematic: chromatic mediants and modal neighbours."""
    shifts = {3: 1.0, 4: 1.5, 8: 2.0, 9: 1.0, 5: 2.0, 7: 1.0, 10: 1.5, 1: 0.5}
    minor = mode in ("minor", "dorian", "phrygian")
    chords = [(0, "m" if minor else "")]
    while len(chords) < slots:
        if dice.chance(0.75):
            degree = dice.pick(
                _LOOPS[mode].get(
                    MODES[mode].index(chords[-1][0]) if chords[-1][0] in MODES[mode] else 0, {0: 1}
                )
            )
            chords.append(triad(mode, degree))
        else:
            root = (chords[-1][0] + dice.pick(shifts)) % 12
            chords.append((root, dice.pick({"m": 1.5 if minor else 0.5, "": 1.0})))
    return chords


_SHARPER = {
    "": ("maj7#11", "aug", "7b9", "sus4"),
    "m": ("mM7", "madd9", "m6", "dim7"),
    "maj7": ("maj7#11",),
    "m7": ("mM7", "m7b5"),
    "7": ("7b9", "7#9", "7b13"),
    "9": ("7#9", "7b9"),
}


GRAMMARS: dict[str, Callable[[Dice, str, int], list[tuple[int, str]]]] = {
    "loop": _loop,
    "functional": _functional,
    "art": _art,
    "sequence": _sequence,
    "roots": _roots,
    "jazz": _jazz,
    "blues": _blues,
    "vamp": _vamp,
    "riff": _riff,
    "plane": _plane,
}


def _with_basses(dice: Dice, chords: list[tuple[int, str]], amount: float) -> Progression:
    """Puts the third of a chord in the bass, with probability `amount`, if the bass then moves by step."""
    result: list[Chord] = []
    for index, (root, quality) in enumerate(chords):
        bass = root
        if result and index + 1 < len(chords) and dice.chance(amount):
            third = Chord(root, quality, root).tones[1]
            by_step = min((third - result[-1].bass) % 12, (result[-1].bass - third) % 12) in (1, 2)
            if by_step and (third - root) % 12 in (3, 4):
                bass = third
        result.append(Chord(root, quality, bass))
    return tuple(result)


def progression_hash(progression: Progression) -> int:
    """Fingerprint of a progression: roots relative to the tonic and qualities, in order."""
    return stable_hash(("progression", *((chord.root, chord.quality) for chord in progression)))


def draw_progression(
    dice: Dice,
    split: str,
    grammar: str,
    mode: str,
    slots: int,
    level: dict[str, float],
    inversions: float,
    tension: float,
) -> Progression:
    """Draws a progression of `slots` chords from the named grammar, with a fingerprint of the split.

    `level` has the weights of the levels of `theory.coloured`; jazz and blues keep the qualities of their grammars.
    `tension` 0..1 is the amount of dissonant substitutes for plain chords.
    """
    scale = MODES[mode]

    def draw(attempt: int) -> Progression:
        chords = GRAMMARS[grammar](dice, mode, slots)
        if attempt > 60 and grammar not in ("jazz", "blues"):
            chords = [triad(mode, dice.integer(0, 5)) if dice.chance(0.3) else chord for chord in chords]
        palette = {root: dice.pick(level) for root, _ in chords}
        choices = {root: dice.random() for root, _ in chords}
        full = [
            (
                root,
                coloured(root, quality, palette[root], scale, choices[root])
                if grammar not in ("jazz", "blues")
                else quality,
            )
            for root, quality in chords
        ]
        if tension and "power" not in level:
            full = [
                (root, dice.among(_SHARPER[q]) if q in _SHARPER and dice.chance(0.6 * tension) else q)
                for root, q in full
            ]
        return _with_basses(dice, full, inversions)

    return draw_within(split, draw, progression_hash)
