"""Splits: train, validation and test share no progression and no motif, since each fingerprint belongs to one split.

Candidates are drawn until a fingerprint belongs to the required split, so the splits are disjoint for all seeds.
"""

import hashlib
from collections.abc import Callable, Hashable
from typing import TypeVar

from melody_jax.errors import UserError

SPLITS = ("train", "validation", "test")
_TRAIN_SHARE = 70
_VALIDATION_SHARE = 15
_ATTEMPTS = 2000

T = TypeVar("T")


def stable_hash(content: Hashable) -> int:
    """Returns a 60-bit hash of a tuple of numbers and strings, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(content).encode(), digest_size=8).digest(), "big") >> 4


def split_of(fingerprint_value: int) -> str:
    """Returns the split that a fingerprint belongs to."""
    share = fingerprint_value % 100
    if share < _TRAIN_SHARE:
        return "train"
    return "validation" if share < _TRAIN_SHARE + _VALIDATION_SHARE else "test"


def split_index(split: str) -> int:
    """Returns the position of a name in `SPLITS`. Raises `UserError` for other names."""
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown: use one of {', '.join(SPLITS)}")
    return SPLITS.index(split)


def draw_within(split: str, draw: Callable[[int], T], key: Callable[[T], int]) -> T:
    """Calls `draw(attempt)` until the fingerprint `key(candidate)` belongs to the split.

    `draw` should widen its choices as `attempt` grows: a small set of candidates (a vamp) may have none in a split.
    """
    for attempt in range(_ATTEMPTS):
        candidate = draw(attempt)
        if split_of(key(candidate)) == split:
            return candidate
    raise RuntimeError(f"no candidate of split {split!r} in {_ATTEMPTS} draws: the grammar is too small")
