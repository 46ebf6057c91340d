"""The proof that runs are paired: what they saw and drew had equal digests at every step (training/pairing.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from melody_jax.ablation.files import read_rows
from melody_jax.errors import UserError

PREFIX = "digest/"


class Pairing(NamedTuple):
    """Of one arm's run and the base's, of the same seed."""

    steps: int
    """How many steps both have."""
    shared: tuple[str, ...]
    """What was equal at all of them."""
    different: tuple[str, ...]
    """What was not."""


def compare_draws(run: Path, base: Path) -> Pairing:
    """Compares the digests of two run folders, step by step. Raises `UserError` if one has none."""
    ours, theirs = _digests(run), _digests(base)
    steps = sorted(ours.keys() & theirs.keys())
    if not steps:
        raise UserError(f"{run} and {base} have no step in common: nothing shows that they are paired")
    names = sorted(ours[steps[0]].keys() | theirs[steps[0]].keys())
    equal = [name for name in names if all(ours[n].get(name) == theirs[n].get(name) for n in steps)]
    return Pairing(len(steps), tuple(equal), tuple(name for name in names if name not in equal))


def check_pairs(arm: str, runs: Sequence[Path], base: Sequence[Path], differs: Sequence[str]) -> list[Pairing]:
    """The pairing of an arm with the base, seed by seed.

    Raises:
        UserError: something differs that the study does not name.
    """
    pairings = [compare_draws(run, other) for run, other in zip(runs, base, strict=True)]
    for seed, pairing in enumerate(pairings):
        unexpected = [name for name in pairing.different if name not in differs]
        if unexpected:
            raise UserError(
                f"arm {arm!r} is not paired with the base: {', '.join(unexpected)} differ ({runs[seed]}); "
                "if that is what the arm is about, the study must say so in `differs`"
            )
    return pairings


def _digests(run: Path) -> dict[int, dict[str, float]]:
    """Step -> what -> digest."""
    found = {}
    for row in read_rows(run):
        digests = {name.removeprefix(PREFIX): value for name, value in row.items() if name.startswith(PREFIX)}
        if digests:
            found[row["step"]] = digests
    return found
