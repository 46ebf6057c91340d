"""The tensors of a published checkpoint: taken by name, checked for shape, every tensor used.

Only safetensors are read, from a file, a folder, or directly from a wheel or zip: nothing is unpickled or unpacked.
"""

import zipfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from melody_jax import files, folders
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.tensor_file import parse_tensors

WEIGHTS = "model.safetensors"
MAX_BYTES = 8 << 30
"""Size of the largest file that is read; the largest network that is imported has 2.4 GB."""


class Tensors:
    """Tensors of `path` under a common `prefix`; error messages name the `network`.

    Raises `UserError` if the file is missing, ambiguous, or not a safetensors file.
    """

    def __init__(self, path: str | Path, network: str, prefix: str = "") -> None:
        self.path = Path(path)
        self.network = network
        self.prefix = prefix
        self._unused = parse_tensors(self.read(WEIGHTS), f"{self.path}: {WEIGHTS}")

    def read(self, name: str) -> bytes:
        """A file of the folder, the archive's only member with this base name, or the safetensors file itself."""
        is_folder = folders.is_folder(self.path)
        file = self.path / name if is_folder else self.path
        if folders.size_of(file) < 0:
            raise self._no_file(name, "no such file")
        if is_folder or (self.path.suffix == ".safetensors" and name == WEIGHTS):
            return files.read_bytes(file, MAX_BYTES)
        with files.open_regular(self.path) as opened:
            try:
                with zipfile.ZipFile(opened) as archive:
                    return archive.read(self._member(archive, name))
            except UserError:
                raise
            except Exception as error:  # zipfile raises errors of many kinds for a damaged archive
                raise self._no_file(name, str(error)) from None

    def _no_file(self, name: str, reason: str) -> UserError:
        return UserError(
            f"{self.path} has no {name} ({reason}): it must be a folder or a wheel of {self.network}"
        )

    def _member(self, archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
        members = [member for member in archive.infolist() if Path(member.filename).name == name]
        if len(members) != 1:
            raise UserError(f"{self.path} holds {len(members)} files named {name}: it must hold one")
        if members[0].file_size > MAX_BYTES:
            raise UserError(
                f"{self.path}: {name} has {members[0].file_size} bytes, at most {MAX_BYTES} are read"
            )
        return members[0]

    def read_lines(self, name: str) -> list[str]:
        """The lines of a UTF-8 file, read as by `read`."""
        try:
            return files.split_lines(self.read(name).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: {name} is not UTF-8 at byte {error.start}") from None

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self._unused

    def take(self, name: str, *shape: int | None) -> np.ndarray:
        """A tensor as float32, marked as used; None in `shape` fits any size."""
        full = self.prefix + name
        if full not in self._unused:
            raise UserError(f"{self.path}: tensor {full} is missing; {self.network} is needed")
        actual = self._unused[full].shape
        if len(actual) != len(shape) or any(
            size not in (None, actual_size) for size, actual_size in zip(shape, actual, strict=True)
        ):
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise UserError(f"{self.path}: tensor {full} has shape {actual}, {self.network} has ({expected})")
        return self._unused.pop(full).astype(np.float32)

    def linear(self, names: str | Sequence[str], inputs: int, outputs: int, bias: bool = True) -> Params:
        """Linear layers with the same input, joined along their outputs."""
        names = [names] if isinstance(names, str) else names
        kernels = [self.take(f"{name}.weight", outputs, inputs).T for name in names]
        layer = {"kernel": np.concatenate(kernels, axis=1)}
        if bias:
            layer["bias"] = np.concatenate([self.take(f"{name}.bias", outputs) for name in names])
        return layer

    def norm(self, name: str, width: int) -> Params:
        """Gain and offset of a LayerNorm."""
        return {"scale": self.take(f"{name}.weight", width), "bias": self.take(f"{name}.bias", width)}

    def batch_norm(self, name: str, width: int, epsilon: float) -> Params:
        """Gain and offset of a batch norm, which is an affine map at inference."""
        affine = self.norm(name, width)
        mean, variance = (self.take(f"{name}.running_{statistic}", width) for statistic in ("mean", "var"))
        if f"{name}.num_batches_tracked" in self:
            self.take(f"{name}.num_batches_tracked")
        scale = affine["scale"] / np.sqrt(variance + epsilon)
        return {"scale": scale, "bias": affine["bias"] - mean * scale}

    def block(self, name: str, attention: str, norms: tuple[str, str], width: int, ffn: int) -> Params:
        """A block of `models/bert_block.py` from the tensors under `name`.

        `attention` and `norms` are the names in which the published families differ.
        """
        return {
            "qkv": self.linear(
                [f"{name}.{attention}.{part}" for part in ("query", "key", "value")], width, width
            ),
            "out": self.linear(f"{name}.attention.output.dense", width, width),
            "norm": self.norm(f"{name}.{norms[0]}", width),
            "up": self.linear(f"{name}.intermediate.dense", width, ffn),
            "down": self.linear(f"{name}.output.dense", ffn, width),
            "ffn_norm": self.norm(f"{name}.{norms[1]}", width),
        }

    def finish(self, *ignored: str) -> None:
        """Checks that every tensor was used, except those whose names begin with one of `ignored`."""
        extra = sorted(name for name in self._unused if not name.startswith(ignored))
        if extra:
            raise UserError(
                f"{self.path}: unexpected tensor {extra[0]} (of {len(extra)}); {self.network} does not have it"
            )


def stack(blocks: Sequence[Params]) -> Params:
    """Parameters of identical blocks, each leaf stacked along a new first axis, as in `functional.stack`."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)


@lru_cache(maxsize=2)
def read_once(load: Callable[[str, Any], Params], path: str, config: Any) -> Params:
    """`load(path, config)`, cached because a stage's `init` is traced several times."""
    return load(path, config)
