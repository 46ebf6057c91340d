"""LAION-CLAP (HTSAT and RoBERTa) to a MuLan (`models/mulan.py: CLAP`).

`laion/larger_clap_music` and `laion/clap-htsat-unfused` are Apache-2.0. Checkpoints with feature fusion are refused
because of their additional tensors.
"""

from pathlib import Path

import numpy as np

from melody_jax.convert import bert
from melody_jax.convert.ast import NORMS
from melody_jax.convert.tensors import Tensors, stack
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.models.htsat import EPSILON, HTSATConfig
from melody_jax.models.mulan import MuLanConfig
from melody_jax.models.text_tower import TextConfig

IGNORED = ("logit_scale_", "text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids")
PADDING = 2  # positions before the first token: RoBERTa counts positions from its padding id


def load_clap(path: str | Path, config: MuLanConfig) -> Params:
    """Both towers' parameters (NumPy float32) from a folder or a safetensors file, without means and codebooks.

    Raises:
        UserError: the config is not that of a CLAP; files or tensors are missing, misshapen or unused.
    """
    if not isinstance(config.music, HTSATConfig) or not config.projection_hidden:
        raise UserError(f"{path}: CLAP weights need HTSAT as music tower and projections with a hidden layer")
    tensors = Tensors(path, "LAION-CLAP")
    params = {
        "music": {
            **_music(tensors, config.music),
            "projection": _projection(tensors, "audio", config.music.pooled, config),
        },
        "text": {
            "encoder": _text(tensors, config.text),
            "projection": _projection(tensors, "text", config.text.width, config),
        },
    }
    tensors.finish(*IGNORED)
    return params


def _projection(tensors: Tensors, modality: str, inputs: int, config: MuLanConfig) -> Params:
    hidden = config.projection_hidden
    return {
        "up": tensors.linear(f"{modality}_projection.linear1", inputs, hidden),
        "out": tensors.linear(f"{modality}_projection.linear2", hidden, config.embedding),
    }


def _text(tensors: Tensors, config: TextConfig) -> Params:
    prefix = "text_model.embeddings"
    width = config.width
    positions = tensors.take(f"{prefix}.position_embeddings.weight", PADDING + config.max_length, width)[
        PADDING:
    ]
    blocks = [
        bert.block(tensors, f"text_model.encoder.layer.{i}", width, config.ffn) for i in range(config.layers)
    ]
    return {
        "words": tensors.take(f"{prefix}.word_embeddings.weight", config.vocab_size, width),
        "positions": positions + tensors.take(f"{prefix}.token_type_embeddings.weight", 1, width)[0],
        "norm": tensors.norm(f"{prefix}.LayerNorm", width),
        "blocks": stack(blocks),
        "pooler": tensors.linear("text_model.pooler.dense", width, width),
    }


def _music(tensors: Tensors, config: HTSATConfig) -> Params:
    prefix = "audio_model.audio_encoder"
    width = config.width
    patch = tensors.take(f"{prefix}.patch_embed.proj.weight", width, 1, config.patch, config.patch)
    return {
        "mel": tensors.batch_norm(f"{prefix}.batch_norm", config.n_mels, EPSILON),
        "patch": {
            "kernel": patch.reshape(width, -1).T,
            "bias": tensors.take(f"{prefix}.patch_embed.proj.bias", width),
        },
        "patch_norm": tensors.norm(f"{prefix}.patch_embed.norm", width),
        "norm": tensors.norm(f"{prefix}.norm", config.pooled),
        "stages": {
            str(i): _stage(tensors, f"{prefix}.layers.{i}", config, i) for i in range(len(config.depths))
        },
    }


def _stage(tensors: Tensors, prefix: str, config: HTSATConfig, stage: int) -> Params:
    width = config.width << stage
    ffn = config.expansion * width
    blocks = [f"{prefix}.blocks.{i}" for i in range(config.depths[stage])]
    params = {
        "blocks": stack([tensors.block(block, "attention.self", NORMS, width, ffn) for block in blocks]),
        "offsets": np.stack(
            [_offsets(tensors, f"{block}.attention.self", config, stage) for block in blocks]
        ),
    }
    if stage + 1 < len(config.depths):
        params["merge_norm"] = tensors.norm(f"{prefix}.downsample.norm", 4 * width)
        params["merge"] = tensors.linear(f"{prefix}.downsample.reduction", 4 * width, 2 * width, bias=False)[
            "kernel"
        ]
    return params


def _offsets(tensors: Tensors, prefix: str, config: HTSATConfig, stage: int) -> np.ndarray:
    index = f"{prefix}.relative_position_index"
    if index in tensors:
        tensors.take(index, config.window**2, config.window**2)
    return tensors.take(
        f"{prefix}.relative_position_bias_table", (2 * config.window - 1) ** 2, config.heads[stage]
    )
