"""HTSAT, the audio tower of LAION-CLAP (arXiv 2202.00874, 2211.06687): a Swin transformer over a folded spectrogram.

    10 s at 48 kHz --log mel--> (F, M) --fold time in four, stack--> square image --4 x 4 patches--> (side, side, D)
    --[blocks, every other with its windows shifted; merge 2 x 2 patches to twice the channels] x 4--> mean over patches

CLAP is the open stand-in for MuLan, which was never published. The defaults are those of the music checkpoint
`laion/larger_clap_music` (Apache-2.0). Its feature fusion, which only the `fused` checkpoints have, is not built.

B batch, T samples at 24 kHz, F mel frames, M mel bands, S side of the image, D channels, W windows, N places in one.
"""

from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import spectral
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.bert_block import Block, BlockConfig, layer_norm
from melody_jax.models.functional import Params, Remat
from melody_jax.models.layers import MASKED

SECONDS = 10
RATE = 48_000
N_FFT, HOP = 1024, 480
HIGHEST = 14_000.0
EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class HTSATConfig:
    """Shape of the tower; the defaults have 67.8 M parameters."""

    n_mels: int = 64
    """Mel bands M, up to 14 kHz."""
    side: int = 256
    """Side S of the image, M times the number of stretches that time is folded into."""
    patch: int = 4
    """Bands and frames of a patch."""
    width: int = 128
    """Channels of the first stage; each later one has twice as many."""
    depths: tuple[int, ...] = (2, 2, 12, 2)
    """Blocks of each stage."""
    heads: tuple[int, ...] = (4, 8, 16, 32)
    """Attention heads of each stage."""
    window: int = 8
    """Patches along a side of the windows in which attention looks."""
    expansion: int = 4
    """Hidden channels of the feed-forward layers, times D."""
    dtype: str = "float32"
    """Compute dtype of the matrix products."""
    remat: Remat = "none"
    """What the backward pass computes again: "none", "dots" or "blocks" (models/functional.py)."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.heads):
            raise UserError(f"{len(self.depths)} depths for {len(self.heads)} heads")
        if self.side % self.n_mels:
            raise UserError(f"side {self.side} must be a multiple of the {self.n_mels} mel bands")
        for stage in range(len(self.depths)):
            if self.grid(stage) < 1 or self.grid(stage) % self.window:
                raise UserError(
                    f"stage {stage} has {self.grid(stage)} patches a side, no multiple of {self.window}"
                )

    @property
    def pooled(self) -> int:
        """Channels of what `encode` returns."""
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


def init(config: HTSATConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters. Raises `UserError` if the heads do not divide the width."""
    patch_key, *stage_keys = jax.random.split(key, 1 + len(config.depths))
    params: Params = {
        "mel": {"scale": jnp.ones(config.n_mels), "bias": jnp.zeros(config.n_mels)},
        "patch": {
            "kernel": 0.02 * jax.random.normal(patch_key, (config.patch**2, config.width)),
            "bias": jnp.zeros(config.width),
        },
        "patch_norm": functional.init(layer_norm, config.width, EPSILON, key=key),
        "norm": functional.init(layer_norm, config.pooled, EPSILON, key=key),
        "stages": {},
    }
    for stage, stage_key in enumerate(stage_keys):
        keys = jax.random.split(stage_key, 3)
        shape, width = config.block(stage), config.width << stage
        offsets = (2 * config.window - 1) ** 2
        made: Params = {
            "blocks": functional.init_stack(Block, shape, key=keys[0], depth=config.depths[stage]),
            "offsets": 0.02 * jax.random.normal(keys[1], (config.depths[stage], offsets, shape.heads)),
        }
        if stage + 1 < len(config.depths):
            made["merge_norm"] = functional.init(layer_norm, 4 * width, EPSILON, key=key)
            made["merge"] = 0.02 * jax.random.normal(keys[2], (4 * width, 2 * width))
        params["stages"][str(stage)] = made
    return params


def spectrogram(config: HTSATConfig, audio: jax.Array) -> jax.Array:
    """Log mel frames (B, 1001, M) of audio (B, T) at 24 kHz, which `fill` brings to 10 s."""
    return log_mel(fill(spectral.resample(audio, 2, 1)), config.n_mels)


def fill(audio: jax.Array) -> jax.Array:
    """Exactly 10 s of 48 kHz audio (B, T), as published: shorter clips again and again while they fit, then silence.

    Of longer ones the first 10 s count (the published extractor takes a random 10 s).
    """
    wanted, there = SECONDS * RATE, audio.shape[1]
    audio = jnp.tile(audio, (1, max(1, wanted // there)))[:, :wanted]
    return jnp.pad(audio, ((0, 0), (0, wanted - audio.shape[1])))


def log_mel(audio: jax.Array, n_mels: int) -> jax.Array:
    """Mel power in decibels above 1, floored at -100, of 48 kHz audio: (B, T) -> (B, T // 480 + 1, n_mels).

    Frames are centred on multiples of the hop; the ends are mirrored.
    """
    audio = jnp.pad(audio, ((0, 0), (N_FFT // 2, N_FFT // 2)), mode="reflect")
    filters = spectral.mel_filterbank(n_mels, N_FFT, RATE, fmax=HIGHEST)
    bands = spectral.power(spectral.stft(audio, N_FFT, HOP, center=False)) @ filters
    return 10 * jnp.log10(jnp.maximum(bands, 1e-10))


def encode(params: Params, config: HTSATConfig, frames: jax.Array) -> jax.Array:
    """Frames (B, F, M) that `spectrogram` made to pooled features (B, D), float32."""
    x = _image(config, frames * params["mel"]["scale"] + params["mel"]["bias"])
    batch, grid, size = len(x), config.grid(0), config.patch
    x = (
        x.reshape(batch, grid, size, grid, size)
        .swapaxes(2, 3)
        .reshape(batch, grid, grid, size**2)
        .astype(config.dtype)
    )
    x = x @ params["patch"]["kernel"].astype(config.dtype) + params["patch"]["bias"].astype(config.dtype)
    x = functional.bind(layer_norm, config.width, EPSILON, params=params["patch_norm"])(x).astype(
        config.dtype
    )
    for stage in range(len(config.depths)):
        x = _stage(params["stages"][str(stage)], config, stage, x)
    norm = functional.bind(layer_norm, config.pooled, EPSILON, params=params["norm"])
    return norm(x.astype(jnp.float32)).mean(axis=(1, 2))


def _image(config: HTSATConfig, frames: jax.Array) -> jax.Array:
    """Frames (B, F, M), stretched to fill it, as an image (B, S, S): its rows are the bands of each quarter in turn."""
    batch, folds = len(frames), config.side // config.n_mels
    frames = jnp.asarray(_stretching(frames.shape[1], config.frames)) @ frames
    return (
        frames.reshape(batch, folds, config.side, config.n_mels)
        .swapaxes(2, 3)
        .reshape(batch, config.side, -1)
    )


@lru_cache(maxsize=8)
def _stretching(there: int, wanted: int) -> np.ndarray:
    """Bicubic interpolation (Keys' kernel, a = -0.75) that keeps the ends in place: (wanted, there)."""
    if there > wanted:
        raise UserError(f"{there} mel frames: the tower takes at most {wanted}")
    weights = np.zeros((wanted, there), np.float32)
    places = np.arange(wanted) * (there - 1) / max(wanted - 1, 1)
    for tap in range(-1, 3):
        near = np.floor(places).astype(int) + tap
        away = np.abs(places - near)
        inner = (1.25 * away - 2.25) * away**2 + 1
        outer = -0.75 * (((away - 5) * away + 8) * away - 4)
        weight = np.where(away <= 1, inner, np.where(away < 2, outer, 0.0))
        np.add.at(weights, (np.arange(wanted), np.clip(near, 0, there - 1)), weight)
    return weights


def _stage(params: Params, config: HTSATConfig, stage: int, x: jax.Array) -> jax.Array:
    """(B, side, side, D) through a stage's blocks, then, but for the last stage, merged to (B, side/2, side/2, 2 D)."""
    window, side = config.window, config.grid(stage)
    look = functional.rematerialised(_look, config.remat, static_argnums=(3, 4))
    for i, block in enumerate(functional.unstack(params["blocks"], config.depths[stage])):
        shift = window // 2 if i % 2 and window < side else 0
        bias = (
            params["offsets"][i][_offset_index(window)].transpose(2, 0, 1)
            + _seam(side, window, shift)[:, None]
        )
        x = look(block, bias, x, config.block(stage), shift)
    if "merge" not in params:
        return x
    x = jnp.concatenate([x[:, row::2, column::2] for column in range(2) for row in range(2)], axis=-1)
    norm = functional.bind(layer_norm, x.shape[-1], EPSILON, params=params["merge_norm"])
    return norm(x).astype(config.dtype) @ params["merge"].astype(config.dtype)


def _look(params: Params, bias: jax.Array, x: jax.Array, config: BlockConfig, shift: int) -> jax.Array:
    """One block on (B, side, side, D), within windows shifted by `shift`; `bias` (W, H, N, N) is theirs."""
    layer, window = functional.bind(Block, config, params=params), round(bias.shape[-1] ** 0.5)
    windows = _partition(jnp.roll(x, (-shift, -shift), axis=(1, 2)), window)
    windows = layer(windows, jnp.tile(bias, (len(x), 1, 1, 1))).astype(x.dtype)
    return jnp.roll(_assemble(windows, x.shape), (shift, shift), axis=(1, 2))


def _partition(x: jax.Array, window: int) -> jax.Array:
    """(B, side, side, D) to the windows' places (B * W, N, D)."""
    batch, side, _, width = x.shape
    count = side // window
    x = x.reshape(batch, count, window, count, window, width).swapaxes(2, 3)
    return x.reshape(batch * count**2, window**2, width)


def _assemble(windows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_partition`; `shape` is (B, side, side, D)."""
    window = round(windows.shape[1] ** 0.5)
    count = shape[1] // window
    return windows.reshape(shape[0], count, count, window, window, -1).swapaxes(2, 3).reshape(shape)


@lru_cache(maxsize=8)
def _offset_index(window: int) -> np.ndarray:
    """For each pair of places in a window (N, N), the row in the table of their (2 window - 1) squared offsets."""
    down, along = (part.reshape(-1) for part in np.indices((window, window)))
    rows, columns = (part[:, None] - part + window - 1 for part in (down, along))
    return rows * (2 * window - 1) + columns


@lru_cache(maxsize=32)
def _seam(side: int, window: int, shift: int) -> np.ndarray:
    """What keeps places apart that only the shift made neighbours: (W, N, N), 0 or a large negative number."""
    index = np.arange(side)
    part = (index >= side - window).astype(int) + (index >= side - shift) if shift else np.zeros(side, int)
    count = side // window
    parts = (
        (3 * part[:, None] + part).reshape(count, window, count, window).swapaxes(1, 2).reshape(count**2, -1)
    )
    return (MASKED * (parts[:, :, None] != parts[:, None, :])).astype(np.float32)
