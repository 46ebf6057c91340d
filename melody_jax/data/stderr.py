"""Discards messages that foreign code writes to the file descriptor 2, past Python's warnings and logging."""

import contextlib
import os
import threading
from collections.abc import Iterator


class _StandardError:
    """The file descriptor 2, redirected while at least one thread wants silence."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._saved = -1

    def silence(self) -> None:
        """Redirects to the null device for the first user."""
        with self._lock:
            if self._users == 0:
                self._saved = os.dup(2)
                with open(os.devnull, "wb") as null:
                    os.dup2(null.fileno(), 2)
            self._users += 1

    def restore(self) -> None:
        """Undoes the redirection after the last user."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                os.dup2(self._saved, 2)
                os.close(self._saved)


_STDERR = _StandardError()


@contextlib.contextmanager
def silenced_stderr() -> Iterator[None]:
    """Discards what this process, and processes that it starts, write to stderr while the block runs."""
    _STDERR.silence()
    try:
        yield
    finally:
        _STDERR.restore()
