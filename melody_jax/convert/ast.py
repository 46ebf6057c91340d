"""The AudioSet AST (`MIT/ast-finetuned-audioset-10-10-0.4593`, BSD-3-Clause) to `models/ast.py`."""

from pathlib import Path

import numpy as np

from melody_jax.convert.tensors import Tensors, stack
from melody_jax.errors import UserError
from melody_jax.models.ast import ASTConfig
from melody_jax.models.functional import Params

NORMS = ("layernorm_before", "layernorm_after")


def load_ast(path: str | Path, config: ASTConfig) -> Params:
    """The tower's parameters (NumPy float32) from a folder or a safetensors file, without the classifier.

    Raises:
        UserError: the tower is not an AST, or files or tensors are missing, misshapen or unused.
    """
    if not isinstance(config, ASTConfig):
        raise UserError(f"{path}: AST weights need an AST as music tower, not a {type(config).__name__}")
    prefix = "audio_spectrogram_transformer."
    width = config.width
    tensors = Tensors(path, "AST")
    if f"{prefix}embeddings.cls_token" in tensors:
        tensors.prefix = prefix
    bands, frames = config.patches
    patch = tensors.take(
        "embeddings.patch_embeddings.projection.weight", width, 1, config.patch, config.patch
    )
    leading = [
        tensors.take(f"embeddings.{name}_token", 1, 1, width)[0, 0] for name in ("cls", "distillation")
    ]
    params = {
        "patch": {
            "kernel": patch.reshape(width, -1).T,
            "bias": tensors.take("embeddings.patch_embeddings.projection.bias", width),
        },
        "tokens": np.stack(leading),
        "positions": tensors.take("embeddings.position_embeddings", 1, 2 + bands * frames, width)[0],
        "blocks": stack(
            [
                tensors.block(f"encoder.layer.{i}", "attention.attention", NORMS, width, config.ffn)
                for i in range(config.layers)
            ]
        ),
        "norm": tensors.norm("layernorm", width),
    }
    tensors.finish("classifier.")
    return params
