"""Tensors of safetensors files as NumPy arrays."""

import numpy as np
import safetensors
from ml_dtypes import bfloat16

from melody_jax.errors import UserError

DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "BF16": bfloat16, "F32": np.float32,
    "F64": np.float64,
}  # fmt: skip
"""Name of a type in a file -> type of the array."""


def parse_tensors(data: bytes, place: str) -> dict[str, np.ndarray]:
    """Name -> array of the content of a safetensors file; `place` names it in errors.

    Raises:
        UserError: it is not a safetensors file, or a tensor has a type that NumPy lacks.
    """
    try:
        stored = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"{place}: not a safetensors file ({error})") from error
    tensors = {}
    for name, tensor in stored:
        if tensor["dtype"] not in DTYPES:
            raise UserError(
                f"{place}: tensor {name} has the type {tensor['dtype']}; {', '.join(DTYPES)} are read"
            )
        tensors[name] = np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return tensors
