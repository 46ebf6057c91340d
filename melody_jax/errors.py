"""The one exception for mistakes of the user: printed as one line, exit code 2, never a stack trace."""

import contextlib
import errno
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from melody_jax.extras import install_hint

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk without space."""


class UserError(ValueError):
    """Bad input. The message is one line that names the offending value and says what would be right."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class Diverged(UserError):
    """Training ended after `steps` steps because of numbers that were not finite."""

    def __init__(self, message: str, steps: int) -> None:
        super().__init__(message)
        self.steps = steps


class InputWarning(UserWarning):
    """Input that is used, but hardly as its user expects. The commands print the message as one line on stderr."""


def open_standard_streams() -> None:
    """Opens those of the three standard streams that are closed as the null device, and lets all text be printed.

    Otherwise the next file that is opened would take the number of a closed stream, and receive what is printed. A
    character that the console's encoding lacks is printed as an escape.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def cli_entry(main: Callable[[], None]) -> Callable[[], None]:
    """Decorates a command's entry point: a `UserError` prints one line on stderr and exits with code 2.

    So do a package that only an extra installs, and a file or folder that the system refuses. Ctrl-C exits with code
    130; a reader of the output that ends early, such as `head`, with code 1.
    """

    @functools.wraps(main)
    def entry() -> None:
        open_standard_streams()
        code = _run(main)
        try:
            sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is flushed at exit
            code = code or _closed(error)
        if code:
            sys.exit(code)

    return entry


def _run(main: Callable[[], None]) -> int | str | None:
    """The exit code of `main`, whose errors and warnings are printed."""
    try:
        with _printed_warnings():
            main()
    except SystemExit as error:
        return error.code
    except UserError as error:
        return _print(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "melody_jax").startswith("melody_jax"):
            raise
        return _print(install_hint(error.name or ""))
    except BrokenPipeError as error:
        return _closed(error)
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        return _print(f"{error.filename or 'what was being written is incomplete'}: {error.strerror}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def _printed_warnings() -> Iterator[None]:
    """Prints each `InputWarning` as one line; other warnings appear as Python shows them."""
    with warnings.catch_warnings():
        plain = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
            if issubclass(category, InputWarning):
                print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
            else:
                plain(message, category, *place, **options)

        warnings.showwarning = show
        warnings.simplefilter("always", InputWarning)
        yield


def _print(message: str) -> int:
    """Prints an error as one line; returns the exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _closed(error: OSError) -> int:
    """The exit code for standard output that takes no more; printed unless its reader ended early."""
    if isinstance(error, BrokenPipeError):
        return 1
    return _print(f"standard output cannot be written ({error.strerror})")
