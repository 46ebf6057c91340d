"""One kind of hostile input: a strategy that draws cases, a function that must survive each, and the run over them.

A case may be accepted or refused with one `UserError`. Any other exception, a case that takes longer than `LIMIT`
seconds and an unfinished file that is left behind are failures.
"""

import contextlib
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis.strategies import SearchStrategy

from melody_jax.errors import UserError

LIMIT = 20.0
"""Seconds that one case may take."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of input."""

    strategy: Callable[[], SearchStrategy[Any]]
    """Returns the strategy that draws the cases."""
    run: Callable[[Any, Path], object]
    """Hands a case to the package, in an empty folder; asserts what must be true of the result."""
    cases: int = 200
    """Cases in continuous integration; fewer where one takes long."""


@dataclass
class Counts:
    """What became of the cases of a kind."""

    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    """Seconds of the slowest case."""


def check(kind: Kind, cases: int | None = None, seed: int = 0) -> Counts:
    """Runs `cases` cases of a kind, as many as in continuous integration for None; raises at the first failure."""
    counts = Counts()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases or kind.cases,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(kind.strategy())
    def run(case: Any) -> None:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as name, _limited(LIMIT):
            folder = Path(name)
            message = "accepted"
            try:
                kind.run(case, folder)
                counts.accepted += 1
            except UserError as error:
                message = str(error)
                counts.refused += 1
            assert message.strip(), "an error without a message"
            unfinished = [path.name for path in folder.rglob(".*.part")]
            assert not unfinished, f"unfinished files are left: {unfinished}"
        counts.slowest = max(counts.slowest, time.monotonic() - begin)

    run()
    return counts


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises `AssertionError` in the block after some seconds; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(*_: object) -> None:
        raise AssertionError(f"a case takes longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
