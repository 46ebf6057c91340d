"""The Audio Spectrogram Transformer (AST, arXiv 2104.01778): the music tower of the paper's MuLan (arXiv 2208.12415).

Kaldi log-mel frames at 16 kHz, cut into 16 x 16 patches every 10 bands and 10 frames, two leading tokens (class and
distillation), learned positions, transformer blocks with norms first; the pooled output is the mean of the two tokens.
The defaults are those of the AudioSet checkpoint `MIT/ast-finetuned-audioset-10-10-0.4593` (BSD-3-Clause).

B batch, T samples at 24 kHz, F mel frames, M mel bands, N patches, D width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from melody_jax import spectral
from melody_jax.models import functional
from melody_jax.models.bert_block import Block, BlockConfig, PatchEmbedding, layer_norm
from melody_jax.models.functional import Params, Remat
from melody_jax.models.tower import MusicTower
from melody_jax.roles import EMBEDDING, WEIGHT

RATE_RATIO = (2, 3)
"""24 kHz to 16 kHz."""


@dataclass(frozen=True, kw_only=True)
class ASTConfig:
    """Shape of the tower; the defaults have 86.2 M parameters."""

    n_mels: int = 128
    """Mel bands M."""
    frames: int = 1024
    """Mel frames F: 10.24 s. Shorter clips are padded as published, longer ones are cut."""
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
    """Half of the divisor of the log-mel values."""
    dtype: str = "float32"
    """Compute dtype of the matrix products."""
    remat: Remat = "none"
    """What the backward pass recomputes: "none", "dots" or "blocks" (models/functional.py)."""

    @property
    def pooled(self) -> int:
        """Channels of the pooled features."""
        return self.width

    @property
    def block(self) -> BlockConfig:
        """Shape of one block."""
        return BlockConfig(
            width=self.width, heads=self.heads, ffn=self.ffn, norm_first=True, dtype=self.dtype
        )

    @property
    def patches(self) -> tuple[int, int]:
        """Number of patches along the bands and along the frames."""
        bands, frames = ((size - self.patch) // self.stride + 1 for size in (self.n_mels, self.frames))
        return bands, frames


TINY = ASTConfig(n_mels=36, frames=116, layers=2, width=32, heads=2, ffn=64)
"""For tests."""


class AST(MusicTower):
    """The network."""

    def __init__(self, config: ASTConfig, *, rngs: nnx.Rngs) -> None:
        width = config.width
        patch_key, position_key, block_key = functional.split_key(rngs, 3)
        bands, frames = config.patches
        self.config = config
        self.patch = PatchEmbedding(config.patch**2, width, config.dtype, key=patch_key)
        self.tokens = nnx.Param(jnp.zeros((2, width)), role=WEIGHT)
        positions = 0.02 * jax.random.normal(position_key, (2 + bands * frames, width))
        self.positions = nnx.Param(positions, role=EMBEDDING)
        self.blocks = functional.stack(Block, config.block, depth=config.layers, key=block_key)
        self.norm = layer_norm(width, config.block.epsilon, rngs=rngs)

    def __call__(self, frames: Float[Array, "B F M"]) -> Float[Array, "B D"]:
        """Frames of `spectrogram` to pooled features, float32."""
        config = self.config
        patches = self.patch(_cut_patches(config, frames))
        tokens = jnp.broadcast_to(self.tokens[...], (len(patches), 2, config.width))
        x = jnp.concatenate([tokens, patches], axis=1) + self.positions[...]
        x = functional.scan_blocks(self.blocks, x.astype(config.dtype), remat=config.remat)
        return self.norm(x[:, :2].astype(jnp.float32)).mean(axis=1)


def _cut_patches(config: ASTConfig, frames: jax.Array) -> jax.Array:
    """Flattened patches (B, N, patch ** 2) of frames (B, F, M)."""
    band_index, frame_index = (
        config.stride * np.arange(count)[:, None] + np.arange(config.patch) for count in config.patches
    )
    patches = frames[:, frame_index][..., band_index]  # (B, frames, 16 frames, bands, 16 bands)
    return patches.transpose(0, 3, 1, 4, 2).reshape(len(frames), -1, config.patch**2)


def init(config: ASTConfig, key: Key[Array, ""]) -> Params:
    """Fresh float32 parameters. Raises `UserError` if the heads do not divide the width."""
    return functional.init(AST, config, key=key)


def spectrogram(config: ASTConfig, audio: Float[Array, "B T"]) -> Float[Array, "B F M"]:
    """Normalised log-mel frames of audio at 24 kHz, padded or cut to F frames."""
    frames = spectral.kaldi_log_mel(spectral.resample(audio, *RATE_RATIO), config.n_mels)[:, : config.frames]
    frames = jnp.pad(frames, ((0, 0), (0, config.frames - frames.shape[1]), (0, 0)))
    return (frames - config.mel_mean) / (2 * config.mel_std)


def encode(params: Params, config: ASTConfig, frames: Float[ArrayLike, "B F M"]) -> Float[Array, "B D"]:
    """Frames of `spectrogram` to pooled features, float32."""
    return functional.bind(AST, config, params=params)(jnp.asarray(frames))
