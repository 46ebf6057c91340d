"""Control tokens: tempo, key, mode, metre and genre, told to the networks in numbers beside MuLan's prefix tokens.

A prompt's point in MuLan's space holds little of a tempo and less of a key. A control token says it exactly: it is the
index of a value in a `ControlVocabulary`, or -1 for none. In training the facts of a piece give the
values; in sampling the user does, or the words of the prompt.

The prefix of a network with controls is [P prefix tokens][C control tokens]; the latter may be left out.

P prefix levels, C controls.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from melody_jax.errors import UserError

NAMES = ("tempo_bpm", "key", "mode", "metre", "genre")
"""The controls, in the order of their tokens; the names are those of a piece's facts."""
KEYS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
"""Names of the pitch classes."""
_FLATS = {
    "Db": "C#",
    "Eb": "D#",
    "Gb": "F#",
    "Ab": "G#",
    "Bb": "A#",
    "Cb": "B",
    "Fb": "E",
    "E#": "F",
    "B#": "C",
}
_SIGNS = {"": "", "#": "#", "♯": "#", "sharp": "#", "b": "b", "♭": "b", "flat": "b"}
_KEY = re.compile(r"([A-G])(#|♯| ?sharp|b|♭| ?flat)? *(\w+)?", re.IGNORECASE)
_MODES = {"m": "minor", "min": "minor", "maj": "major"}


@dataclass(frozen=True, kw_only=True)
class ControlVocabulary:
    """The values that control tokens may have."""

    slowest: float = 40.0
    """Tempo of the first tempo token, beats per minute."""
    fastest: float = 240.0
    """Tempo of the last one."""
    tempos: int = 60
    """Tempo tokens, whose tempi rise by equal factors (3.1 % by default)."""
    modes: tuple[str, ...] = ("major", "minor")
    """Names of modes."""
    metres: tuple[str, ...] = ("4/4", "3/4", "6/8")
    """Names of metres."""
    genres: tuple[str, ...] = ()
    """Names of genres."""

    def __post_init__(self) -> None:
        is_whole = isinstance(self.tempos, int) and not isinstance(self.tempos, bool)
        if not (0 < self.slowest < self.fastest < math.inf and is_whole and self.tempos >= 2):
            raise UserError(
                f"tempi from {self.slowest:g} to {self.fastest:g} in {self.tempos} steps; it must be at least two "
                "steps between rising tempi above 0"
            )
        for name in ("modes", "metres", "genres"):
            names = getattr(self, name)
            if not isinstance(names, tuple | list) or len(set(names)) < len(names):
                raise UserError(f"{name} is {names!r}; it must be a list of different names")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each of `NAMES`."""
        return self.tempos, len(KEYS), len(self.modes), len(self.metres), len(self.genres)

    def tokens(self, facts: Mapping[str, Any]) -> Int32[np.ndarray, " C"]:
        """The token of each of `NAMES`; -1 for a fact that is missing, None, or not in the vocabulary."""
        values = {"key": KEYS, "mode": self.modes, "metre": self.metres, "genre": self.genres}
        tokens = [self._tempo_token(facts.get("tempo_bpm"))]
        for name in NAMES[1:]:
            value = facts.get(name)
            tokens.append(values[name].index(value) if value in values[name] else -1)
        return np.array(tokens, np.int32)

    def check(self, facts: Mapping[str, Any]) -> None:
        """Raises `UserError` for a fact that is not in the vocabulary."""
        tempo = facts.get("tempo_bpm")
        if tempo is not None and self._tempo_token(tempo) < 0:
            raise UserError(f"bpm is {tempo:g}; it must be from {self.slowest:g} to {self.fastest:g}")
        for name, values in (("mode", self.modes), ("metre", self.metres), ("genre", self.genres)):
            value = facts.get(name)
            if value is not None and value not in values:
                raise UserError(f"{name} is {value!r}; it must be one of {', '.join(values)}")

    def tempo(self, token: int) -> float:
        """The tempo of a tempo token, beats per minute."""
        return self.slowest * (self.fastest / self.slowest) ** (token / (self.tempos - 1))

    def _tempo_token(self, tempo: Any) -> int:
        """The nearest tempo's token; -1 for what is no tempo, or is more than half a step outside."""
        if isinstance(tempo, bool) or not isinstance(tempo, int | float) or not tempo > 0:
            return -1
        step = math.log(self.fastest / self.slowest) / (self.tempos - 1)
        place = math.log(tempo / self.slowest) / step
        return round(place) if -0.5 <= place < self.tempos - 0.5 else -1


def parse_key(text: str) -> dict[str, str]:
    """{"key", "mode"} of a key such as "A minor", "Bbm" or "F# dorian"; without a mode only the key.

    Raises:
        UserError: the text is not a key.
    """
    match = _KEY.fullmatch(text.strip())
    if not match:
        raise UserError(
            f"key is {text!r}; it must be a note and a mode, such as 'A minor', 'Bb major' or 'F#'"
        )
    note, accidental, mode = match.groups()
    accidental = (accidental or "").strip().lower()
    name = note.upper() + _SIGNS[accidental]
    facts = {"key": _FLATS.get(name, name)}
    if not mode:
        return facts
    return facts | {"mode": "major" if mode == "M" else _MODES.get(mode.lower(), mode.lower())}
