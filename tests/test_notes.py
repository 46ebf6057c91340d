"""What a failed read of the checkpoint library leaves behind: one error for the caller, nothing on stderr."""

import subprocess
import sys

import pytest

ABANDONED = """
import warnings
from melody_jax.training.notes import ReportedOnce

async def read():
    return 1

try:
    with ReportedOnce():
        raise ValueError("one of many reads failed")
except ValueError:
    pass
warnings.filterwarnings(*{filter!r})
read()
"""


@pytest.mark.parametrize("filter", [("ignore", "another"), ("error",)])
def test_reads_that_never_began_are_not_reported(filter: tuple[str, ...]) -> None:
    script = ABANDONED.format(filter=filter)
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stderr == ""
