"""The proof that runs are paired: what they saw and drew had equal digests at every step (training/digests.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from melody_jax.ablation.files import read_steps
from melody_jax.errors import UserError
from melody_jax.training.digests import DIGEST


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
    ours, theirs = read_steps(run), read_steps(base)
    steps, mine, others = np.intersect1d(ours["step"], theirs["step"], return_indices=True)
    if not len(steps):
        raise UserError(f"{run} and {base} have no step in common: nothing shows that they are paired")
    names = sorted(name for name in ours.keys() | theirs.keys() if name.startswith(DIGEST))
    shared, different = [], []
    for name in names:
        same = name in ours and name in theirs and np.array_equal(ours[name][mine], theirs[name][others])
        (shared if same else different).append(name.removeprefix(DIGEST))
    return Pairing(len(steps), tuple(shared), tuple(different))


def check_pairs(
    arm: str, runs: Sequence[Path], base: Sequence[Path], differs: Sequence[str]
) -> list[Pairing]:
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
