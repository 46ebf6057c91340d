"""The one exception a user's mistake becomes: printed as a single line, exit code 2, never a stack trace."""

import functools
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input. The message is one line that names the offending value and says what would be right."""


class Diverged(UserError):
    """Training ended after `steps` steps, for numbers that were not finite."""

    def __init__(self, message: str, steps: int) -> None:
        super().__init__(message)
        self.steps = steps


def exits_cleanly(main: Callable[[], None]) -> Callable[[], None]:
    """Decorates a command's entry point: a `UserError` prints one line on stderr and exits with code 2.

    So does a package that only an extra installs.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            main()
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)
        except ModuleNotFoundError as error:
            if (error.name or "melody_jax").startswith("melody_jax"):
                raise
            print(
                f"error: {error.name} is not installed: pip install -e '.[train,compose,beam,evaluate]' brings it",
                file=sys.stderr,
            )
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped
