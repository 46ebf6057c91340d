"""wav2vec 2.0's family to `models/wav2vec2.py`: Wav2Vec2-Conformer with rotary positions, HuBERT, MERT.

The Wav2Vec2-Conformer checkpoints of Meta are Apache-2.0; MERT-v1-95M is CC-BY-NC-4.0: networks trained on its tokens
inherit the restriction to non-commercial use.
"""

from pathlib import Path

import numpy as np

from melody_jax.convert.tensors import Tensors, stack
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.models.wav2vec2 import EPSILON, Wav2Vec2Config

TRAINING_ONLY = ("quantizer.", "project_hid.", "project_q.", "lm_head.", "masked_spec_embed")
UNUSED = ("encoder.layer_norm.", "encoder.embed_positions.")  # features are read before the last norm


def load_wav2vec2(path: str | Path, config: Wav2Vec2Config) -> Params:
    """The encoder's parameters (NumPy float32) from a folder or a safetensors file.

    A batch norm becomes an affine map, its form at inference.

    Raises:
        UserError: the encoder is of another kind, or files or tensors are missing, misshapen or unused.
    """
    if not isinstance(config, Wav2Vec2Config):
        raise UserError(f"{path}: published weights need a Wav2Vec2 encoder, not a {type(config).__name__}")
    tensors = Tensors(path, "Wav2Vec2-Conformer" if config.conformer else "HuBERT")
    for prefix in ("wav2vec2_conformer.", "hubert."):
        if f"{prefix}feature_projection.projection.weight" in tensors:
            tensors.prefix = prefix
    block = _conformer_block if config.conformer else _transformer_block
    layers = (block(tensors, f"encoder.layers.{i}", config) for i in range(config.layers))
    params: Params = {
        "convolutions": {str(i): _convolution(tensors, i, config) for i in range(len(config.kernels))},
        "input_norm": tensors.norm("feature_projection.layer_norm", config.channels),
        "input": tensors.linear("feature_projection.projection", config.channels, config.width),
        "blocks": stack(list(layers)),
    }
    unused = [tensors.prefix + name for name in (*TRAINING_ONLY, *UNUSED)]
    if config.conformer:
        unused.append(
            f"{tensors.prefix}encoder.pos_conv_embed."
        )  # published but not used in the forward pass
    else:
        params["position"] = _positions(tensors, config)
        params["norm"] = tensors.norm("encoder.layer_norm", config.width)
    tensors.finish(*unused, *TRAINING_ONLY)
    return params


def _convolution(tensors: Tensors, i: int, config: Wav2Vec2Config) -> Params:
    name = f"feature_extractor.conv_layers.{i}"
    inputs = config.channels if i else 1
    kernel = tensors.take(f"{name}.conv.weight", config.channels, inputs, config.kernels[i])
    layer: Params = {"kernel": kernel.transpose(2, 1, 0)}
    if config.channel_norm:
        layer["bias"] = tensors.take(f"{name}.conv.bias", config.channels)
    if config.channel_norm or i == 0:
        layer["norm"] = tensors.norm(f"{name}.layer_norm", config.channels)
    return layer


def _positions(tensors: Tensors, config: Wav2Vec2Config) -> Params:
    """The convolution with its weight norm, a gain per tap, multiplied into the kernel."""
    name = "encoder.pos_conv_embed.conv"
    width = config.width
    group_width = width // config.position_groups
    is_legacy = f"{name}.weight_g" in tensors
    gain_name = "weight_g" if is_legacy else "parametrizations.weight.original0"
    direction_name = "weight_v" if is_legacy else "parametrizations.weight.original1"
    gain = tensors.take(f"{name}.{gain_name}", 1, 1, config.position_kernel)
    direction = tensors.take(f"{name}.{direction_name}", width, group_width, config.position_kernel)
    kernel = gain * direction / np.sqrt((direction**2).sum((0, 1), keepdims=True))
    return {"kernel": kernel.transpose(2, 1, 0), "bias": tensors.take(f"{name}.bias", width)}


def _transformer_block(tensors: Tensors, name: str, config: Wav2Vec2Config) -> Params:
    width = config.width
    parts = [f"{name}.attention.{part}_proj" for part in "qkv"]
    return {
        "qkv": tensors.linear(parts, width, width),
        "out": tensors.linear(f"{name}.attention.out_proj", width, width),
        "norm": tensors.norm(f"{name}.layer_norm", width),
        "up": tensors.linear(f"{name}.feed_forward.intermediate_dense", width, config.ffn),
        "down": tensors.linear(f"{name}.feed_forward.output_dense", config.ffn, width),
        "ffn_norm": tensors.norm(f"{name}.final_layer_norm", width),
    }


def _conformer_block(tensors: Tensors, name: str, config: Wav2Vec2Config) -> Params:
    width = config.width
    return {
        "before": _feed_forward(tensors, f"{name}.ffn1", config),
        "attention_norm": tensors.norm(f"{name}.self_attn_layer_norm", width),
        "query_key": tensors.linear(
            [f"{name}.self_attn.linear_q", f"{name}.self_attn.linear_k"], width, width
        ),
        "value": tensors.linear(f"{name}.self_attn.linear_v", width, width),
        "attention_out": tensors.linear(f"{name}.self_attn.linear_out", width, width),
        "convolution": _convolution_module(tensors, f"{name}.conv_module", config),
        "after": _feed_forward(tensors, f"{name}.ffn2", config),
        "norm": tensors.norm(f"{name}.final_layer_norm", width),
    }


def _feed_forward(tensors: Tensors, name: str, config: Wav2Vec2Config) -> Params:
    return {
        "norm": tensors.norm(f"{name}_layer_norm", config.width),
        "up": tensors.linear(f"{name}.intermediate_dense", config.width, config.ffn),
        "down": tensors.linear(f"{name}.output_dense", config.ffn, config.width),
    }


def _convolution_module(tensors: Tensors, name: str, config: Wav2Vec2Config) -> Params:
    width = config.width
    return {
        "norm": tensors.norm(f"{name}.layer_norm", width),
        "gate": {"kernel": tensors.take(f"{name}.pointwise_conv1.weight", 2 * width, width, 1)[..., 0].T},
        "depthwise": tensors.take(f"{name}.depthwise_conv.weight", width, 1, config.kernel)[:, 0].T,
        **tensors.batch_norm(f"{name}.batch_norm", width, EPSILON),
        "out": {"kernel": tensors.take(f"{name}.pointwise_conv2.weight", width, width, 1)[..., 0].T},
    }
