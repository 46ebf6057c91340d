"""Whether a released network is what its description says: numbers of the config, shapes and values of the tensors."""

from typing import Any

import jax
import numpy as np

from melody_jax.config_json import flat_values
from melody_jax.errors import UserError

MAX_SIZE = 1 << 24
"""Largest number in a config."""
MAX_DEPTH = 1000
"""Largest number of layers or blocks in a config."""


def check_numbers(config: Any, place: str) -> None:
    """Raises `UserError` for a number in a config that no network has; `place` names the file."""
    for field, value in flat_values(config):
        is_depth = field.endswith(("layers", "blocks")) or "depths." in field
        largest = MAX_DEPTH if is_depth else MAX_SIZE
        if isinstance(value, int | float) and not abs(value) <= largest:  # NaN is not
            raise UserError(f"{place}: {field} is {value}; it must be at most {largest}")


def without_later_blocks(shapes: dict[str, Any], params: dict[str, np.ndarray], layer: int) -> dict[str, Any]:
    """The shapes of a tokenizer of as many blocks as `params` has, at least the `layer` of its tokens."""
    blocks = [path for path in shapes if path.startswith("blocks/")]
    counts = {params[path].shape[:1] for path in blocks if path in params}
    if len(counts) != 1 or not (count := counts.pop()) or not layer <= count[0] <= shapes[blocks[0]].shape[0]:
        return shapes
    trimmed = {
        path: jax.ShapeDtypeStruct(count + shapes[path].shape[1:], shapes[path].dtype) for path in blocks
    }
    return shapes | trimmed


def check_tensors(
    params: dict[str, np.ndarray], shapes: dict[str, Any], may_lack: tuple[str, ...], place: str
) -> None:
    """Raises `UserError` unless the tensors are those of the network, and finite."""
    present = {path.partition("/")[0] for path in params}
    lacking = {part for part in may_lack if part not in present}
    missing = [path for path in shapes if path not in params and path.partition("/")[0] not in lacking]
    foreign = [path for path in params if path not in shapes]
    for words, paths in (("lacks the tensor", missing), ("holds the foreign tensor", foreign)):
        if paths:
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            raise UserError(f"{place}: {words} {paths[0]}{more}; its config is of another network")
    for path, value in params.items():
        expected = shapes[path]
        if value.shape != expected.shape or value.dtype != expected.dtype:
            raise UserError(
                f"{place}: {path} is {value.dtype} {value.shape}; by its config it is {expected.dtype} {expected.shape}"
            )
        if not np.isfinite(value).all():
            raise UserError(f"{place}: {path} holds values that are not finite")
