"""The checker of types and shapes that tests put into the package (see conftest.py)."""

from typing import Any

from beartype import BeartypeConf, beartype

CHECKER = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""Takes an int for a float, as type checkers do."""


def check(function: Any) -> Any:
    """Checks the arguments and the result of each call, except of constructors.

    Configs and requests check their own values, with messages for users that tests look at.
    """
    return function if function.__name__ == "__init__" else CHECKER(function)
