"""LAION-CLAP (HTSAT and RoBERTa) to a MuLan (`models/mulan.py: CLAP`).

`laion/larger_clap_music` and `laion/clap-htsat-unfused` are Apache-2.0. Checkpoints with feature fusion are refused:
tensors are left over.
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
PADDING = 2  # positions before that of the first token: RoBERTa counts from its padding id on


def load_clap(path: str | Path, config: MuLanConfig) -> Params:
    """Both towers' parameters (NumPy float32) from a folder or a safetensors file, without what is fitted afterwards.

    Raises:
        UserError: the config is not CLAP's kind; files or tensors are missing, misshapen or left over.
    """
    if not isinstance(config.music, HTSATConfig) or not config.projection_hidden:
        raise UserError(
            f"{path}: CLAP's weights need HTSAT as music tower, and projections with a hidden layer"
        )
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
    at, width = "text_model.embeddings", config.width
    positions = tensors.take(f"{at}.position_embeddings.weight", PADDING + config.max_length, width)[PADDING:]
    blocks = [
        bert.block(tensors, f"text_model.encoder.layer.{i}", width, config.ffn) for i in range(config.layers)
    ]
    return {
        "words": tensors.take(f"{at}.word_embeddings.weight", config.vocab_size, width),
        "positions": positions + tensors.take(f"{at}.token_type_embeddings.weight", 1, width)[0],
        "norm": tensors.norm(f"{at}.LayerNorm", width),
        "blocks": stack(blocks),
        "pooler": tensors.linear("text_model.pooler.dense", width, width),
    }


def _music(tensors: Tensors, config: HTSATConfig) -> Params:
    at, width = "audio_model.audio_encoder", config.width
    patch = tensors.take(f"{at}.patch_embed.proj.weight", width, 1, config.patch, config.patch)
    return {
        "mel": tensors.batch_norm(f"{at}.batch_norm", config.n_mels, EPSILON),
        "patch": {
            "kernel": patch.reshape(width, -1).T,
            "bias": tensors.take(f"{at}.patch_embed.proj.bias", width),
        },
        "patch_norm": tensors.norm(f"{at}.patch_embed.norm", width),
        "norm": tensors.norm(f"{at}.norm", config.pooled),
        "stages": {str(i): _stage(tensors, f"{at}.layers.{i}", config, i) for i in range(len(config.depths))},
    }


def _stage(tensors: Tensors, at: str, config: HTSATConfig, stage: int) -> Params:
    width, depth = config.width << stage, config.depths[stage]
    blocks, ffn = [f"{at}.blocks.{i}" for i in range(depth)], config.expansion * width
    params = {
        "blocks": stack([tensors.block(block, "attention.self", NORMS, width, ffn) for block in blocks]),
        "offsets": np.stack(
            [_offsets(tensors, f"{block}.attention.self", config, stage) for block in blocks]
        ),
    }
    if stage + 1 < len(config.depths):
        params["merge_norm"] = tensors.norm(f"{at}.downsample.norm", 4 * width)
        params["merge"] = tensors.linear(f"{at}.downsample.reduction", 4 * width, 2 * width, bias=False)[
            "kernel"
        ]
    return params


def _offsets(tensors: Tensors, at: str, config: HTSATConfig, stage: int) -> np.ndarray:
    index = f"{at}.relative_position_index"
    if index in tensors:
        tensors.take(index, config.window**2, config.window**2)
    return tensors.take(
        f"{at}.relative_position_bias_table", (2 * config.window - 1) ** 2, config.heads[stage]
    )
