"""HTSAT, the audio tower of LAION-CLAP (arXiv 2202.00874, 2211.06687): a Swin transformer over a folded spectrogram.

    10 s at 48 kHz --log mel--> (F, M) --fold time in four, stack--> square image --4 x 4 patches--> (side, side, D)
    --[blocks, every other with its windows shifted; merge 2 x 2 patches to twice the channels] x 4--> mean over patches

CLAP is an open substitute for MuLan, whose weights are not published. The defaults are those of the music checkpoint
`laion/larger_clap_music` (Apache-2.0). Feature fusion, which only the `fused` checkpoints have, is not implemented.

B batch, T samples, F mel frames, M mel bands, S side of the image, G patches along a side, D channels, W windows,
N patches in a window, H heads.
"""

from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from melody_jax import spectral
from melody_jax.audio_format import HTSAT_RATE
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.bert_block import Block, BlockConfig, PatchEmbedding, layer_norm
from melody_jax.models.functional import Params, Remat, make_rngs
from melody_jax.models.layers import MASKED
from melody_jax.models.tower import MusicTower
from melody_jax.roles import BIAS, NORM, WEIGHT

SECONDS = 10
"""Length of the input."""
N_FFT = 1024
"""Samples per spectrogram frame."""
HOP = 480
"""Samples between frames."""
HIGHEST = 14_000.0
"""Upper end of the mel bands, Hz."""
EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class HTSATConfig:
    """Shape of the tower; the defaults have 67.8 M parameters."""

    n_mels: int = 64
    """Mel bands M, up to 14 kHz."""
    side: int = 256
    """Side S of the image: M times the number of segments into which time is folded."""
    patch: int = 4
    """Bands and frames of a patch."""
    width: int = 128
    """Channels of the first stage; each later one has twice as many."""
    depths: tuple[int, ...] = (2, 2, 12, 2)
    """Blocks of each stage."""
    heads: tuple[int, ...] = (4, 8, 16, 32)
    """Attention heads of each stage."""
    window: int = 8
    """Patches along a side of an attention window."""
    expansion: int = 4
    """Hidden channels of the feed-forward layers as a multiple of D."""
    dtype: str = "float32"
    """Compute dtype of the matrix products."""
    remat: Remat = "none"
    """What the backward pass recomputes: "none", "dots" or "blocks" (models/functional.py)."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.heads):
            raise UserError(f"{len(self.depths)} depths for {len(self.heads)} heads")
        if self.side % self.n_mels:
            raise UserError(f"side {self.side} must be a multiple of the {self.n_mels} mel bands")
        for stage in range(len(self.depths)):
            if self.grid(stage) < 1 or self.grid(stage) % self.window:
                raise UserError(
                    f"stage {stage} has {self.grid(stage)} patches per side: window {self.window} must divide them"
                )

    @property
    def pooled(self) -> int:
        """Channels of the pooled features."""
        return self.width << (len(self.depths) - 1)

    @property
    def frames(self) -> int:
        """Mel frames that fill the image."""
        return self.side * (self.side // self.n_mels)

    def grid(self, stage: int) -> int:
        """Patches along a side in a stage."""
        return (self.side // self.patch) >> stage

    def block(self, stage: int) -> BlockConfig:
        """Shape of a stage's blocks."""
        width = self.width << stage
        return BlockConfig(
            width=width,
            heads=self.heads[stage],
            ffn=self.expansion * width,
            norm_first=True,
            epsilon=EPSILON,
            dtype=self.dtype,
        )


CLAP_UNFUSED = HTSATConfig(width=96, depths=(2, 2, 6, 2))
"""The smaller tower of `laion/clap-htsat-unfused` (Apache-2.0)."""
TINY = HTSATConfig(n_mels=16, side=32, patch=2, width=8, depths=(2, 2), heads=(2, 4), window=4)
"""For tests."""


class Affine(nnx.Module):
    """A gain and an offset per channel: what a batch norm is at inference."""

    def __init__(self, width: int) -> None:
        self.scale = nnx.Param(jnp.ones(width), role=NORM)
        self.bias = nnx.Param(jnp.zeros(width), role=BIAS)

    def __call__(self, x: Float[Array, "... M"]) -> Float[Array, "... M"]:
        """The map applied to each channel."""
        return x * self.scale[...] + self.bias[...]


class Stage(nnx.Module):
    """Blocks on one grid of patches; every stage except the last then merges 2 x 2 patches."""

    def __init__(self, config: HTSATConfig, stage: int, *, rngs: nnx.Rngs) -> None:
        block_key, offset_key, merge_key = functional.split_key(rngs, 3)
        block = config.block(stage)
        depth = config.depths[stage]
        width = config.width << stage
        offsets = (2 * config.window - 1) ** 2
        self.config = config
        self.depth = depth
        self.side = config.grid(stage)
        self.is_last = stage + 1 == len(config.depths)
        self.blocks = functional.stack(Block, block, depth=depth, key=block_key)
        offset_values = 0.02 * jax.random.normal(offset_key, (depth, offsets, block.heads))
        self.offsets = nnx.Param(offset_values, role=WEIGHT)
        if not self.is_last:
            self.merge_norm = layer_norm(4 * width, EPSILON, rngs=rngs)
            merge = 0.02 * jax.random.normal(merge_key, (4 * width, 2 * width))
            self.merge = nnx.Param(merge, role=WEIGHT)

    def __call__(self, x: Float[Array, "B G G D"]) -> Float[Array, "B G2 G2 D2"]:
        """To half the grid and twice the channels, in the last stage to the same shape."""
        window = self.config.window
        attend_windows = functional.rematerialised(_attend_windows, self.config.remat, static_argnums=(3,))
        for i, block in enumerate(functional.unstack(self.blocks, self.depth)):
            shift = window // 2 if i % 2 and window < self.side else 0
            bias = self.offsets[i][_offset_index(window)].transpose(2, 0, 1)
            bias = bias + _shift_mask(self.side, window, shift)[:, None]
            x = attend_windows(block, bias, x, shift)
        if self.is_last:
            return x
        x = jnp.concatenate([x[:, row::2, column::2] for column in range(2) for row in range(2)], axis=-1)
        dtype = self.config.dtype
        return self.merge_norm(x).astype(dtype) @ self.merge[...].astype(dtype)


class HTSAT(MusicTower):
    """The network."""

    def __init__(self, config: HTSATConfig, *, rngs: nnx.Rngs) -> None:
        patch_key, *stage_keys = functional.split_key(rngs, 1 + len(config.depths))
        self.config = config
        self.mel = Affine(config.n_mels)
        self.patch = PatchEmbedding(config.patch**2, config.width, config.dtype, key=patch_key)
        self.patch_norm = layer_norm(config.width, EPSILON, rngs=rngs)
        self.stages = nnx.List(
            Stage(config, stage, rngs=make_rngs(key)) for stage, key in enumerate(stage_keys)
        )
        self.norm = layer_norm(config.pooled, EPSILON, rngs=rngs)

    def __call__(self, frames: Float[Array, "B F M"]) -> Float[Array, "B D"]:
        """Frames of `spectrogram` to pooled features, float32."""
        config = self.config
        image = _image(config, self.mel(frames))
        grid = config.grid(0)
        patches = image.reshape(len(image), grid, config.patch, grid, config.patch).swapaxes(2, 3)
        x = self.patch(patches.reshape(len(image), grid, grid, config.patch**2))
        x = self.patch_norm(x).astype(config.dtype)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x.astype(jnp.float32)).mean(axis=(1, 2))


def init(config: HTSATConfig, key: Key[Array, ""]) -> Params:
    """Fresh float32 parameters. Raises `UserError` if the heads do not divide the width."""
    return functional.init(HTSAT, config, key=key)


def encode(params: Params, config: HTSATConfig, frames: Float[ArrayLike, "B F M"]) -> Float[Array, "B D"]:
    """Frames of `spectrogram` to pooled features, float32."""
    return functional.bind(HTSAT, config, params=params)(jnp.asarray(frames))


def spectrogram(config: HTSATConfig, audio: Float[Array, "B T"]) -> Float[Array, "B F M"]:
    """Log-mel frames, F = 1001, of audio at 24 kHz, brought to 10 s by `fill`."""
    return log_mel(fill(spectral.resample(audio, 2, 1)), config.n_mels)


def fill(audio: Float[ArrayLike, "B T"]) -> Float[Array, "B T10"]:
    """Exactly 10 s of audio at 48 kHz, as published: shorter clips are repeated as often as they fit, then padded.

    Longer clips are cut to their first 10 s (the published extractor takes a random 10 s).
    """
    audio = jnp.asarray(audio)
    samples = SECONDS * HTSAT_RATE
    repeats = max(1, samples // audio.shape[1])
    audio = jnp.tile(audio, (1, repeats))[:, :samples]
    return jnp.pad(audio, ((0, 0), (0, samples - audio.shape[1])))


def log_mel(audio: Float[ArrayLike, "B T"], n_mels: int) -> Float[Array, "B F {n_mels}"]:
    """Mel power in decibels above 1, at least -100, of audio at 48 kHz, F = T // 480 + 1.

    Frames are centred on multiples of the hop; the ends are mirrored.
    """
    audio = jnp.pad(jnp.asarray(audio), ((0, 0), (N_FFT // 2, N_FFT // 2)), mode="reflect")
    filters = spectral.mel_filterbank(n_mels, N_FFT, HTSAT_RATE, fmax=HIGHEST)
    bands = spectral.power(spectral.stft(audio, N_FFT, HOP, center=False)) @ filters
    return 10 * jnp.log10(jnp.maximum(bands, 1e-10))


def _image(config: HTSATConfig, frames: jax.Array) -> jax.Array:
    """Frames (B, F, M) stretched over an image (B, S, S); its rows are the bands of each time segment in turn."""
    batch = len(frames)
    folds = config.side // config.n_mels
    frames = jnp.asarray(_bicubic(frames.shape[1], config.frames)) @ frames
    return (
        frames.reshape(batch, folds, config.side, config.n_mels)
        .swapaxes(2, 3)
        .reshape(batch, config.side, -1)
    )


@lru_cache(maxsize=8)
def _bicubic(inputs: int, outputs: int) -> np.ndarray:
    """Matrix (outputs, inputs) of bicubic interpolation (Keys' kernel, a = -0.75) with aligned ends."""
    if inputs > outputs:
        raise UserError(f"{inputs} mel frames: the tower takes at most {outputs}")
    weights = np.zeros((outputs, inputs), np.float32)
    positions = np.arange(outputs) * (inputs - 1) / max(outputs - 1, 1)
    for tap in range(-1, 3):
        index = np.floor(positions).astype(int) + tap
        distance = np.abs(positions - index)
        inner = (1.25 * distance - 2.25) * distance**2 + 1
        outer = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, inner, np.where(distance < 2, outer, 0.0))
        np.add.at(weights, (np.arange(outputs), np.clip(index, 0, inputs - 1)), weight)
    return weights


def _attend_windows(block: Block, bias: jax.Array | np.ndarray, x: jax.Array, shift: int) -> jax.Array:
    """One block on (B, G, G, D), within windows shifted by `shift`, with their `bias` (W, H, N, N)."""
    window = round(bias.shape[-1] ** 0.5)
    windows = _partition(jnp.roll(x, (-shift, -shift), axis=(1, 2)), window)
    windows = block(windows, jnp.tile(bias, (len(x), 1, 1, 1))).astype(x.dtype)
    return jnp.roll(_assemble(windows, x.shape), (shift, shift), axis=(1, 2))


def _partition(x: jax.Array, window: int) -> jax.Array:
    """(B, G, G, D) to windows (B * W, N, D)."""
    batch, side, _, width = x.shape
    count = side // window
    x = x.reshape(batch, count, window, count, window, width).swapaxes(2, 3)
    return x.reshape(batch * count**2, window**2, width)


def _assemble(windows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_partition`; `shape` is (B, G, G, D)."""
    window = round(windows.shape[1] ** 0.5)
    count = shape[1] // window
    return windows.reshape(shape[0], count, count, window, window, -1).swapaxes(2, 3).reshape(shape)


@lru_cache(maxsize=8)
def _offset_index(window: int) -> np.ndarray:
    """For each pair of patches in a window (N, N), the row of their offset among the (2 window - 1) ** 2 offsets."""
    offsets = [
        index.reshape(-1)[:, None] - index.reshape(-1) + window - 1 for index in np.indices((window, window))
    ]
    return offsets[0] * (2 * window - 1) + offsets[1]


@lru_cache(maxsize=32)
def _shift_mask(side: int, window: int, shift: int) -> np.ndarray:
    """Additive bias (W, N, N) that separates patches which are neighbours only because of the cyclic shift."""
    index = np.arange(side)
    region = (index >= side - window).astype(int) + (index >= side - shift) if shift else np.zeros(side, int)
    count = side // window
    regions = (3 * region[:, None] + region).reshape(count, window, count, window)
    regions = regions.swapaxes(1, 2).reshape(count**2, -1)
    return (MASKED * (regions[:, :, None] != regions[:, None, :])).astype(np.float32)
