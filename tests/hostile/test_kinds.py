"""Mutated input of every kind is accepted or refused in one line; nothing else happens."""

import pytest

from hostile.kind import check
from hostile.registry import KINDS


@pytest.mark.parametrize("name", KINDS)
def test_every_case_is_accepted_or_refused(name: str) -> None:
    counts = check(KINDS[name])
    assert counts.accepted + counts.refused >= KINDS[name].cases
