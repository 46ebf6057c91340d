"""The one exception for mistakes of the user: printed as one line, exit code 2, never a stack trace."""

import functools
import os
import sys
from collections.abc import Callable

from melody_jax.extras import install_hint


class UserError(ValueError):
    """Bad input. The message is one line that names the offending value and says what would be right."""


class Diverged(UserError):
    """Training ended after `steps` steps because of numbers that were not finite."""

    def __init__(self, message: str, steps: int) -> None:
        super().__init__(message)
        self.steps = steps


class InputWarning(UserWarning):
    """Input that is used, but hardly as its user expects. The commands print the message as one line on stderr."""


def cli_entry(main: Callable[[], None]) -> Callable[[], None]:
    """Decorates a command's entry point: a `UserError` prints one line on stderr and exits with code 2.

    A package that only an extra installs is reported in the same way. Ctrl-C exits with code 130; a reader of the
    output that ends early, such as `head`, with code 1.
    """

    @functools.wraps(main)
    def entry() -> None:
        try:
            main()
            sys.stdout.flush()
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)
        except ModuleNotFoundError as error:
            if (error.name or "melody_jax").startswith("melody_jax"):
                raise
            print(f"error: {install_hint(error.name or '')}", file=sys.stderr)
            sys.exit(2)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is flushed at exit
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return entry
