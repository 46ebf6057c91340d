"""Arrays in .npz files that are written atomically."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from melody_jax.files import make_folder, write_bytes

_save: Callable[..., None] = np.savez


def write_npz(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name; creates the folder. Raises `UserError` if the file cannot be written."""
    buffer = io.BytesIO()
    _save(buffer, **arrays)
    make_folder(file.parent)
    write_bytes(file, buffer.getvalue())
