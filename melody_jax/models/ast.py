"""The Audio Spectrogram Transformer (AST, arXiv 2104.01778): the music tower of the paper's MuLan (section 2.1 there).

Log-mel frames of Kaldi's kind at 16 kHz, cut into 16 x 16 patches every 10 bands and 10 frames, two leading tokens
(class and distillation), learned positions, transformer blocks with norms first; the pooled output is the mean of the
two tokens. The defaults are those of the AudioSet checkpoint `MIT/ast-finetuned-audioset-10-10-0.4593` (BSD-3-Clause).

B batch, T samples at 24 kHz, F mel frames, M mel bands, N patches, D width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import spectral
from melody_jax.models import functional
from melody_jax.models.bert_block import Block, BlockConfig, layer_norm
from melody_jax.models.functional import Params, Remat

RATE_RATIO = (2, 3)
"""24 kHz to 16 kHz."""


@dataclass(frozen=True, kw_only=True)
class ASTConfig:
    """Shape of the tower; the defaults have 86.2 M parameters."""

    n_mels: int = 128
    """Mel bands M."""
    frames: int = 1024
    """Mel frames F: 10.24 s. Shorter clips are padded as published, longer ones cut."""
    patch: int = 16
    """Bands and frames of a patch."""
    stride: int = 10
    """Bands and frames between patches."""
    layers: int = 12
    """Transformer blocks."""
    width: int = 768
    """Channels D, also of the pooled output."""
    heads: int = 12
    """Attention heads."""
    ffn: int = 3072
    """Hidden channels of the feed-forward layers."""
    mel_mean: float = -4.2677393
    """Subtracted from the log-mel values."""
    mel_std: float = 4.5689974
    """Half of what divides them."""
    dtype: str = "float32"
    """Compute dtype of the matrix products."""
    remat: Remat = "none"
    """What the backward pass computes again: "none", "dots" or "blocks" (models/functional.py)."""

    @property
    def pooled(self) -> int:
        """Channels of what `encode` returns."""
        return self.width

    @property
    def block(self) -> BlockConfig:
        """Shape of one block."""
        return BlockConfig(
            width=self.width, heads=self.heads, ffn=self.ffn, norm_first=True, dtype=self.dtype
        )

    @property
    def patches(self) -> tuple[int, int]:
        """How many patches there are along the bands and along the frames."""
        bands, frames = ((size - self.patch) // self.stride + 1 for size in (self.n_mels, self.frames))
        return bands, frames


TINY = ASTConfig(n_mels=36, frames=116, layers=2, width=32, heads=2, ffn=64)
"""For tests."""


def init(config: ASTConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters. Raises `UserError` if the heads do not divide the width."""
    patch_key, position_key, block_key = jax.random.split(key, 3)
    bands, frames = config.patches
    return {
        "patch": {
            "kernel": 0.02 * jax.random.normal(patch_key, (config.patch**2, config.width)),
            "bias": jnp.zeros(config.width),
        },
        "tokens": jnp.zeros((2, config.width)),
        "positions": 0.02 * jax.random.normal(position_key, (2 + bands * frames, config.width)),
        "blocks": functional.init_stack(Block, config.block, key=block_key, depth=config.layers),
        "norm": functional.init(layer_norm, config.width, config.block.epsilon, key=key),
    }


def spectrogram(config: ASTConfig, audio: jax.Array) -> jax.Array:
    """Normalised log-mel frames (B, F, M) of audio (B, T) at 24 kHz, padded or cut to F frames."""
    frames = spectral.kaldi_log_mel(spectral.resample(audio, *RATE_RATIO), config.n_mels)[:, : config.frames]
    frames = jnp.pad(frames, ((0, 0), (0, config.frames - frames.shape[1]), (0, 0)))
    return (frames - config.mel_mean) / (2 * config.mel_std)


def encode(params: Params, config: ASTConfig, frames: jax.Array) -> jax.Array:
    """Frames (B, F, M) that `spectrogram` made to pooled features (B, D), float32."""
    starts = tuple(
        config.stride * np.arange(count)[:, None] + np.arange(config.patch) for count in config.patches
    )
    patches = frames[:, starts[1]][..., starts[0]]  # (B, frames, 16 frames, bands, 16 bands)
    patches = patches.transpose(0, 3, 1, 4, 2).reshape(len(frames), -1, config.patch**2).astype(config.dtype)
    x = patches @ params["patch"]["kernel"].astype(config.dtype) + params["patch"]["bias"].astype(
        config.dtype
    )
    tokens = jnp.broadcast_to(params["tokens"], (len(x), *params["tokens"].shape))
    x = jnp.concatenate([tokens, x], axis=1) + params["positions"]
    x = functional.scan_blocks(
        Block, config.block, params=params["blocks"], x=x.astype(config.dtype), remat=config.remat
    )
    norm = functional.bind(layer_norm, config.width, config.block.epsilon, params=params["norm"])
    return norm(x[:, :2].astype(jnp.float32)).mean(axis=1)
