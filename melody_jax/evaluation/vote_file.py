"""A file of votes between two clips: one JSON object per line.

    {"a": "TAKE", "b": "TAKE", "differs": {"steps": [5, 20]}, "choice": "b", "time": 1790000000.0}

`a` is the clip that was listened to first (or stands on the left); `differs` has the settings in which the clips differ
and the value of each clip.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melody_jax import files
from melody_jax.errors import UserError
from melody_jax.sampling.settings import shorten

CHOICES = ("a", "b", "tie")
MAX_DIFFERING = 64
"""Settings in which two clips differ at most."""


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One comparison. All fields are JSON values. Raises `UserError` for a field of another type."""

    a: str
    """The clip that came first."""
    b: str
    differs: dict[str, Any]
    """Setting -> (value of a, value of b). Empty: the clips have equal settings."""
    choice: str
    """The better clip, "a" or "b", or "tie"."""
    time: float
    """Seconds since 1970."""

    def __post_init__(self) -> None:
        if not all(isinstance(clip, str) and 0 < len(clip) <= 200 for clip in (self.a, self.b)):
            raise UserError(
                f"a is {shorten(self.a)} and b {shorten(self.b)}; they must be the ids of two clips"
            )
        if self.a == self.b:
            raise UserError(f"a and b are both {shorten(self.a)}; a vote compares two clips")
        if self.choice not in CHOICES:
            raise UserError(f"choice is {shorten(self.choice)}; it must be one of {', '.join(CHOICES)}")
        if isinstance(self.time, bool) or not isinstance(self.time, int | float):
            raise UserError(f"time is {shorten(self.time)}; it must be seconds since 1970")
        pairs = self.differs.values() if isinstance(self.differs, dict) else [None]
        is_right = all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs)
        if not is_right or len(self.differs) > MAX_DIFFERING:
            raise UserError(
                f"differs is {shorten(self.differs)}; it must have at most {MAX_DIFFERING} settings, each with the two "
                "values of a and b"
            )


def vote_line(vote: Vote) -> bytes:
    """A vote as a line of the file."""
    return (json.dumps(dataclasses.asdict(vote), ensure_ascii=False) + "\n").encode()


def read_votes(path: Path) -> list[Vote]:
    """The votes of a file in order. A last line without its end is left out: its writer was stopped.

    Raises `UserError`, with the number of the line, for one that is no vote.
    """
    lines = files.read_text(path).split("\n")[:-1]
    votes = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        value = files.parse_json(line, place)
        names = {field.name for field in dataclasses.fields(Vote)}
        if not isinstance(value, dict) or value.keys() != names:
            raise UserError(f"{place}: no vote; it must be an object with {', '.join(sorted(names))}")
        try:
            votes.append(Vote(**value))
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    return votes
