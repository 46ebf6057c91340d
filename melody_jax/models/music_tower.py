"""The small music tower of `mini`'s MuLan. The paper's is AST (`models/ast.py`).

Log-mel spectrogram, two strided convolutions to a quarter of the frame rate, a transformer with rotary positions, mean
and maximum over time; a clip may have any length. The pooled features also contain the clip's rhythm, one layer over
its tempogram: a small tower learns tempo quickly from it, and hardly at all from spectra (docs/mini.md). The mean level
is subtracted, so that quiet and loud copies of a clip have the same embedding.

B batch, T samples at 24 kHz, F mel frames, N = ceil(F / 4) positions, M mel bands, D width, K bands and L lags of the
tempogram, C = `pooled` channels.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from melody_jax import spectral
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.functional import Params, make_rngs
from melody_jax.models.layers import Linear, RMSNorm, merge_heads, rotary, split_heads
from melody_jax.models.platform import attend
from melody_jax.models.tower import MusicTower
from melody_jax.roles import BIAS, CONV, Kind


@dataclass(frozen=True, kw_only=True)
class MusicTowerConfig:
    """Shape of the tower. The defaults are `mini`."""

    n_fft: int = 2048
    """Samples per spectrogram frame; 2048 resolves semitones from 440 Hz up, which key and mode need."""
    hop: int = 480
    """Samples between frames: 50 Hz."""
    n_mels: int = 128
    """Mel bands M."""
    kernel: int = 5
    """Frames that each of the two convolutions (stride 2) spans."""
    layers: int = 4
    """Transformer blocks."""
    width: int = 192
    """Channels D."""
    heads: int = 6
    """Attention heads; they divide `width` into even head widths."""
    ffn: int = 768
    """Hidden channels of the feed-forward layers."""
    rhythm_bands: int = 4
    """Bands of the tempogram; they divide `n_mels`. 0: no tempogram."""
    rhythm_lags: tuple[int, int] = (8, 200)
    """Lags of the tempogram in frames, first included and last excluded: 0.16 to 4 s at 50 Hz."""
    dtype: str = "float32"
    """Compute dtype of the matrix products; spectrogram, norms and softmax are float32."""

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise UserError(f"width {self.width} must be a multiple of twice the {self.heads} heads")
        if self.rhythm_bands and self.n_mels % self.rhythm_bands:
            raise UserError(f"{self.n_mels} mel bands do not divide into rhythm_bands {self.rhythm_bands}")

    @property
    def pooled(self) -> int:
        """Channels of the pooled features."""
        return (3 if self.rhythm_bands else 2) * self.width


TINY = MusicTowerConfig(n_fft=512, n_mels=32, layers=1, width=32, heads=2, ffn=64, rhythm_bands=1)
"""For tests."""


def _linear(
    config: MusicTowerConfig,
    rngs: nnx.Rngs,
    inputs: int,
    outputs: int,
    gain: float = 1.0,
    role: Kind = "column",
    lora: bool = False,
) -> Linear:
    init = nnx.initializers.normal(gain * inputs**-0.5)
    dtype = jnp.dtype(config.dtype)
    return Linear(inputs, outputs, role=role, lora=lora, kernel_init=init, dtype=dtype, rngs=rngs)


class FrontEnd(nnx.Module):
    """Mel frames to a quarter of their rate."""

    def __init__(self, config: MusicTowerConfig, *, rngs: nnx.Rngs) -> None:
        sizes = ((config.n_mels, config.width), (config.width, config.width))
        self.convs = nnx.List(
            nnx.Conv(
                inputs,
                outputs,
                config.kernel,
                strides=2,
                padding="SAME",
                dtype=jnp.dtype(config.dtype),
                kernel_metadata={"role": CONV},
                bias_metadata={"role": BIAS},
                rngs=rngs,
            )
            for inputs, outputs in sizes
        )
        self.norm = RMSNorm(config.width, rngs=rngs)

    def __call__(self, x: Float[Array, "B F M"]) -> Float[Array, "B N D"]:
        """Two strided convolutions with a GELU after each, then a norm."""
        for conv in self.convs:
            x = jax.nn.gelu(conv(x))
        return self.norm(x)


class Block(nnx.Module):
    """Pre-norm self-attention with rotary positions, and a GELU feed-forward layer."""

    def __init__(self, config: MusicTowerConfig, *, rngs: nnx.Rngs) -> None:
        self.heads = config.heads
        residual_gain = (2 * config.layers) ** -0.5
        linear = partial(_linear, config, rngs, lora=True)
        self.norm = RMSNorm(config.width, rngs=rngs)
        self.qkv = linear(config.width, 3 * config.width)
        self.out = linear(config.width, config.width, residual_gain, role="row")
        self.ffn_norm = RMSNorm(config.width, rngs=rngs)
        self.up = linear(config.width, config.ffn)
        self.down = linear(config.ffn, config.width, residual_gain, role="row")

    def __call__(self, x: Float[Array, "B N D"], positions: Int[Array, " N"]) -> Float[Array, "B N D"]:
        """One block at these positions."""
        q, k, v = (split_heads(h, self.heads) for h in jnp.split(self.qkv(self.norm(x)), 3, axis=-1))
        x = x + self.out(merge_heads(attend(rotary(q, positions), rotary(k, positions), v)))
        return x + self.down(jax.nn.gelu(self.up(self.ffn_norm(x))))


class Rhythm(nnx.Module):
    """A norm, a layer and a GELU over a tempogram."""

    def __init__(self, config: MusicTowerConfig, *, rngs: nnx.Rngs) -> None:
        inputs = config.rhythm_bands * (config.rhythm_lags[1] - config.rhythm_lags[0])
        self.norm = RMSNorm(inputs, rngs=rngs)
        self.hidden = _linear(config, rngs, inputs, config.width)

    def __call__(self, x: Float[Array, "B K L"]) -> Float[Array, "B D"]:
        """Features of tempograms."""
        return jax.nn.gelu(self.hidden(self.norm(x.reshape(len(x), -1))))


class SmallTower(MusicTower):
    """The network."""

    def __init__(self, config: MusicTowerConfig, *, rngs: nnx.Rngs) -> None:
        front_key, block_key, rhythm_key = functional.split_key(rngs, 3)
        self.config = config
        self.front = FrontEnd(config, rngs=make_rngs(front_key))
        self.blocks = functional.stack(Block, config, depth=config.layers, key=block_key)
        self.norm = RMSNorm(config.width, rngs=rngs)
        self.rhythm = Rhythm(config, rngs=make_rngs(rhythm_key)) if config.rhythm_bands else None

    def __call__(self, frames: Float[Array, "B F M"]) -> Float[Array, "B C"]:
        """Frames of `spectrogram` to pooled features, float32."""
        config = self.config
        x = self.front(frames.astype(config.dtype))
        x = functional.scan_blocks(self.blocks, x, (jnp.arange(x.shape[1]),))
        x = self.norm(x).astype(jnp.float32)
        pooled = [x.mean(1), x.max(1)]
        if self.rhythm is not None:
            tempogram = spectral.tempogram(frames, config.rhythm_bands, config.rhythm_lags)
            pooled.append(self.rhythm(tempogram).astype(jnp.float32))
        return jnp.concatenate(pooled, axis=-1)


def init(config: MusicTowerConfig, key: Key[Array, ""]) -> Params:
    """Fresh float32 parameters."""
    return functional.init(SmallTower, config, key=key)


def spectrogram(config: MusicTowerConfig, audio: Float[Array, "B T"]) -> Float[Array, "B F M"]:
    """Log-mel frames less each clip's mean level, scaled to about unit variance."""
    frames = spectral.log_mel(audio, config.n_fft, config.hop, config.n_mels)
    return (frames - frames.mean((1, 2), keepdims=True)) / 3.0


def encode(
    params: Params, config: MusicTowerConfig, frames: Float[ArrayLike, "B F M"]
) -> Float[Array, "B C"]:
    """Frames of `spectrogram` to pooled features, float32."""
    return functional.bind(SmallTower, config, params=params)(jnp.asarray(frames))
