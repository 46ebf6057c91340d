"""The proof that runs are paired: their data and their random draws had equal digests at every step."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from melody_jax.ablation.results import Arrays, RunResult
from melody_jax.errors import UserError
from melody_jax.training.digests import DIGEST


class Pairing(NamedTuple):
    """The digests of two runs of the same seed."""

    steps: int
    """Number of steps that both runs have."""
    equal: tuple[str, ...]
    """What was equal at all of these steps."""
    different: tuple[str, ...]
    """What differed at some step, or what only one of the runs has."""


def compare_digests(steps: Arrays, base_steps: Arrays) -> Pairing:
    """Compares two runs' columns of `files.read_steps`. Raises `UserError` if they have no step in common."""
    common, rows, base_rows = np.intersect1d(steps["step"], base_steps["step"], return_indices=True)
    if not len(common):
        raise UserError("two runs have no step in common, so nothing shows that they are paired")
    names = sorted(name for name in steps.keys() | base_steps.keys() if name.startswith(DIGEST))
    equal = []
    different = []
    for name in names:
        is_equal = (
            name in steps
            and name in base_steps
            and np.array_equal(steps[name][rows], base_steps[name][base_rows])
        )
        (equal if is_equal else different).append(name.removeprefix(DIGEST))
    return Pairing(len(common), tuple(equal), tuple(different))


def check_pairs(
    runs: Sequence[RunResult], base_runs: Sequence[RunResult], differs: Sequence[str]
) -> list[Pairing]:
    """The pairing of an arm's runs with those of its reference arm, seed by seed.

    Raises:
        UserError: something differs that the study does not name in `differs`.
    """
    pairings = [compare_digests(run.steps, base.steps) for run, base in zip(runs, base_runs, strict=True)]
    for run, pairing in zip(runs, pairings, strict=True):
        unexpected = [name for name in pairing.different if name not in differs]
        if unexpected:
            raise UserError(
                f"arm {run.arm!r} is not paired with its reference arm: {', '.join(unexpected)} differ with seed "
                f"{run.seed}; if the arm changes that on purpose, name it in the study's `differs`"
            )
    return pairings
