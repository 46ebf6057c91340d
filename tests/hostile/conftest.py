"""A user without privileges, for tests of permissions that also run as root."""

import codecs
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65_534


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user without privileges, who runs the test."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if os.geteuid() != 0:
            yield folder
            return
        for encoding in (
            "ascii",
            "utf-8-sig",
        ):  # root's interpreter may lie where nobody else may import from
            codecs.lookup(encoding)
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(0)
