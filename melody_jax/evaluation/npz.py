"""Arrays in .npz files: written atomically, and read only where the declared shapes fit the bytes."""

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from melody_jax.errors import UserError, first_line
from melody_jax.files import MAX_BYTES, make_folder, read_bytes, write_bytes

DAMAGED = "damaged; delete it, and its content is measured again"
"""What an error says of a file in a cache."""
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Those of `np.savez` and `np.savez_compressed`."""
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""Version of an array's format -> reader of its header."""
ERRORS = (
    ValueError, TypeError, KeyError, IndexError, SyntaxError, OverflowError, EOFError, RecursionError, MemoryError,
    NotImplementedError, RuntimeError, OSError, zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip
"""What `zipfile` and NumPy raise for bytes that are no .npz."""

_save: Callable[..., None] = np.savez


def write_npz(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name; creates the folder. Raises `UserError` if the file cannot be written."""
    buffer = io.BytesIO()
    _save(buffer, **arrays)
    make_folder(file.parent)
    write_bytes(file, buffer.getvalue())


def read_npz(
    file: Path, names: Sequence[str] = (), problem: str = "not a .npz file"
) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name. Nothing is unpickled, and nothing larger than the file says is allocated.

    Args:
        file: a regular file; it and its arrays have at most `files.MAX_BYTES`.
        names: arrays that it must have.
        problem: what the error says of a file that is not as described.

    Raises:
        UserError: the file cannot be read, is too large, is not a .npz of numbers and texts, is damaged or lacks an
            array.
    """
    data = read_bytes(file)
    try:
        arrays = _parse(data)
        absent = [name for name in names if name not in arrays]
        if absent:
            raise ValueError(f"it has no array {absent[0]!r}")
    except ERRORS as error:
        raise UserError(f"{file}: {problem} ({first_line(error)})") from None
    return arrays


def _parse(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        if size > MAX_BYTES:
            raise ValueError(f"arrays of {size} bytes; at most {MAX_BYTES} are read")
        if any(member.compress_type not in COMPRESSIONS for member in members):
            raise ValueError("an unknown compression")
        return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}


def _array(content: bytes) -> np.ndarray:
    """The array of a .npy file."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"an array in format {version}")
    shape, _, dtype = HEADERS[version](stream)
    size = len(content) - stream.tell()
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    if not dtype.itemsize or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"an array of shape {shape} and type {dtype} in {size} bytes")
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)
