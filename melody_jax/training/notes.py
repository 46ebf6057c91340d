"""Lines on standard error: our notes, and what the checkpoint library has to say, one line each."""

import logging
import sys
import warnings
from types import TracebackType
from typing import Any

from tqdm import tqdm

LIBRARIES = ("/orbax/", "/tensorstore/")
"""Parts of the paths of the checkpoint library's files."""

NEVER_AWAITED = "was never awaited"
"""What Python warns of when it frees a read that was abandoned before it began."""


def print_note(line: str) -> None:
    """Prints one line on stderr, above a progress bar."""
    tqdm.write(line, file=sys.stderr)


class _OneLine(logging.Filter):
    """Prints warnings of the checkpoint library as notes, without those that come with an exception: that is raised in
    our thread too, and reported there."""

    is_reading = False
    """Whether the library reads, or has failed to."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_abandoned = self.is_reading and "never retrieved" in record.getMessage()
        if record.levelno < logging.WARNING or not (is_abandoned or _is_from_library(record)):
            return True
        if not record.exc_info:
            first_line = (record.getMessage().splitlines() or [record.levelname])[0]
            print_note(f"checkpoint library: {first_line[:300]}")
        return False


def _is_from_library(record: logging.LogRecord) -> bool:
    trace = record.exc_info[2] if record.exc_info else None
    return _names_library(record.pathname) or _passes_library(trace)


def _names_library(path: str) -> bool:
    return any(part in path for part in LIBRARIES)


def _passes_library(trace: TracebackType | None) -> bool:
    while trace is not None:
        if _names_library(trace.tb_frame.f_code.co_filename):
            return True
        trace = trace.tb_next
    return False


_ONE_LINE = _OneLine()


def shorten_library_messages() -> None:
    """From now on the checkpoint library's warnings are notes of one line."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_ONE_LINE)  # a filter is added once


class ReportedOnce:
    """A context in which the checkpoint library reads: if it fails, the caller gets one error.

    When one of many concurrent reads fails, the library abandons the others, and Python prints a trace for each, at the
    latest some time after the context. An error hence leaves the filters in place.
    """

    def __enter__(self) -> None:
        self._hooks = sys.unraisablehook, sys.excepthook
        sys.unraisablehook = self._unraisable
        sys.excepthook = self._uncaught
        _ONE_LINE.is_reading = True

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            sys.unraisablehook, sys.excepthook = self._hooks
            _ONE_LINE.is_reading = False
        else:
            warnings.filterwarnings("ignore", f"coroutine .*{NEVER_AWAITED}", RuntimeWarning)

    def _unraisable(self, unraisable: Any) -> None:
        if not _is_abandoned(unraisable.exc_value, unraisable.exc_traceback):
            self._hooks[0](unraisable)

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not _is_abandoned(error, trace):
            self._hooks[1](kind, error, trace)


def _is_abandoned(error: BaseException | None, trace: TracebackType | None) -> bool:
    """Whether the error is of a read that nobody waits for any more."""
    is_late = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    is_unstarted = isinstance(error, RuntimeWarning) and NEVER_AWAITED in str(error)  # warnings can be errors
    return is_late or is_unstarted or _passes_library(trace)
