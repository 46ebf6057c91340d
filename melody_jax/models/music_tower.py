"""A small music tower for MuLan: what `mini` hears music with. The paper's is AST (`models/ast.py`).

Log-mel spectrogram, two strided convolutions to a quarter of the frame rate, transformer with rotary positions, mean
and maximum over time, so any length goes in. Beside these stands the clip's rhythm, a layer over its tempogram: from
that a small tower learns tempo at once, from spectra hardly ever (docs/mini.md). The level of the audio is taken out,
so that quiet and loud copies of a clip share an embedding.

B batch, T samples at 24 kHz, F mel frames, M mel bands, D width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from melody_jax import spectral
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.functional import Params
from melody_jax.models.layers import RMSNorm, attend, merge_heads, rotary, split_heads


@dataclass(frozen=True, kw_only=True)
class MusicTowerConfig:
    """Shape of the tower. The defaults are `mini`."""

    n_fft: int = 2048
    """Samples a spectrogram frame; 2048 tells semitones apart from 440 Hz up, which key and mode need."""
    hop: int = 480
    """Samples between frames: 50 Hz."""
    n_mels: int = 128
    """Mel bands M."""
    kernel: int = 5
    """Frames each of the two convolutions (stride 2) spans."""
    layers: int = 4
    """Transformer blocks."""
    width: int = 192
    """Channels D."""
    heads: int = 6
    """Attention heads; they divide `width` into even head widths."""
    ffn: int = 768
    """Hidden channels of the feed-forward layers."""
    rhythm_bands: int = 4
    """Bands of the tempogram beside the tower; they divide `n_mels`. 0: none."""
    rhythm_lags: tuple[int, int] = (8, 200)
    """Lags of the tempogram, frames, the first included and the last not: 0.16 to 4 s at 50 Hz."""
    dtype: str = "float32"
    """Compute dtype of the matrix products; spectrogram, norms and softmax are float32."""

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise UserError(f"width {self.width} must be a multiple of twice the {self.heads} heads")
        if self.rhythm_bands and self.n_mels % self.rhythm_bands:
            raise UserError(f"{self.n_mels} mel bands do not divide into rhythm_bands {self.rhythm_bands}")

    @property
    def pooled(self) -> int:
        """Channels of what `encode` returns."""
        return (3 if self.rhythm_bands else 2) * self.width


TINY = MusicTowerConfig(n_fft=512, n_mels=32, layers=1, width=32, heads=2, ffn=64, rhythm_bands=1)
"""For tests."""


def _linear(
    inputs: int, outputs: int, config: MusicTowerConfig, rngs: nnx.Rngs, gain: float = 1.0
) -> nnx.Linear:
    init = nnx.initializers.normal(gain * inputs**-0.5)
    return nnx.Linear(inputs, outputs, kernel_init=init, dtype=jnp.dtype(config.dtype), rngs=rngs)


class FrontEnd(nnx.Module):
    """(B, F, M) mel frames to (B, ceil(F / 4), D)."""

    def __init__(self, config: MusicTowerConfig, *, rngs: nnx.Rngs) -> None:
        sizes = ((config.n_mels, config.width), (config.width, config.width))
        self.convs = nnx.List(
            nnx.Conv(i, o, config.kernel, strides=2, padding="SAME", dtype=jnp.dtype(config.dtype), rngs=rngs)
            for i, o in sizes
        )
        self.norm = RMSNorm(config.width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Two strided convolutions with a GELU after each, then a norm."""
        for conv in self.convs:
            x = jax.nn.gelu(conv(x))
        return self.norm(x)


class Block(nnx.Module):
    """Pre-norm self-attention with rotary positions, and a GELU feed-forward layer."""

    def __init__(self, config: MusicTowerConfig, *, rngs: nnx.Rngs) -> None:
        self.heads = config.heads
        residual = (2 * config.layers) ** -0.5
        self.norm = RMSNorm(config.width, rngs=rngs)
        self.qkv = _linear(config.width, 3 * config.width, config, rngs)
        self.out = _linear(config.width, config.width, config, rngs, residual)
        self.ffn_norm = RMSNorm(config.width, rngs=rngs)
        self.up = _linear(config.width, config.ffn, config, rngs)
        self.down = _linear(config.ffn, config.width, config, rngs, residual)

    def __call__(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """One block on (B, F, D) with positions (F,)."""
        q, k, v = (split_heads(h, self.heads) for h in jnp.split(self.qkv(self.norm(x)), 3, axis=-1))
        x = x + self.out(merge_heads(attend(rotary(q, positions), rotary(k, positions), v)))
        return x + self.down(jax.nn.gelu(self.up(self.ffn_norm(x))))


class Rhythm(nnx.Module):
    """(B, bands, lags) tempograms to (B, D)."""

    def __init__(self, config: MusicTowerConfig, *, rngs: nnx.Rngs) -> None:
        inputs = config.rhythm_bands * (config.rhythm_lags[1] - config.rhythm_lags[0])
        self.norm = RMSNorm(inputs, rngs=rngs)
        self.hidden = _linear(inputs, config.width, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """A norm, a layer and a GELU."""
        return jax.nn.gelu(self.hidden(self.norm(x.reshape(len(x), -1))))


def init(config: MusicTowerConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters."""
    front, blocks, rhythm = jax.random.split(key, 3)
    params = {
        "front": functional.init(FrontEnd, config, key=front),
        "blocks": functional.init_stack(Block, config, key=blocks, depth=config.layers),
        "norm": functional.init(RMSNorm, config.width, key=front),
    }
    return params | ({"rhythm": functional.init(Rhythm, config, key=rhythm)} if config.rhythm_bands else {})


def spectrogram(config: MusicTowerConfig, audio: jax.Array) -> jax.Array:
    """Log-mel frames (B, F, M) of audio (B, T), each clip's mean level taken out, scaled to about unit variance."""
    frames = spectral.log_mel(audio, config.n_fft, config.hop, config.n_mels)
    return (frames - frames.mean((1, 2), keepdims=True)) / 3.0


def encode(params: Params, config: MusicTowerConfig, frames: jax.Array) -> jax.Array:
    """Frames (B, F, M) that `spectrogram` made to pooled features (B, `config.pooled`), float32."""
    x = functional.bind(FrontEnd, config, params=params["front"])(frames.astype(config.dtype))
    positions = jnp.arange(x.shape[1])
    x = functional.scan_blocks(Block, config, params=params["blocks"], x=x, inputs=(positions,))
    x = functional.bind(RMSNorm, config.width, params=params["norm"])(x).astype(jnp.float32)
    pooled = [x.mean(1), x.max(1)]
    if config.rhythm_bands:
        tempogram = spectral.tempogram(frames, config.rhythm_bands, config.rhythm_lags)
        pooled.append(functional.bind(Rhythm, config, params=params["rhythm"])(tempogram).astype(jnp.float32))
    return jnp.concatenate(pooled, axis=-1)
