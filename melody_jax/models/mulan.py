"""MuLan: music and text in one space, quantised to the prefix tokens that condition the LM (melody-paper section 2.1).

Music tower: log-mel spectrogram, two strided convolutions to a quarter of the frame rate, transformer with rotary
positions, mean and maximum over time, so any length goes in. Beside these the projection gets the clip's rhythm, a
layer over its tempogram: from that a small tower learns tempo at once, from spectra hardly ever (docs/mini.md). Text
tower: `models/text.py` and a projection. Both end on the unit sphere. The level of the audio is taken out, so that
quiet and loud copies of a clip share an embedding.

The quantiser centres each modality first ("Modality gap"): `params["music_mean"]`, `params["text_mean"]` and
`params["codebooks"]` are fitted after training. The deep levels of a text embedding still say little, which is why the
LM drops deep levels at random in training.

B batch, T samples at 24 kHz, F mel frames, M mel bands, N word pieces, D tower width, E embedding, V levels, C codes.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx

from melody_jax import spectral
from melody_jax.errors import UserError
from melody_jax.models import functional, rvq, text
from melody_jax.models.functional import Params
from melody_jax.models.layers import RMSNorm, attend, merge_heads, rotary, split_heads
from melody_jax.models.text import TextConfig


@dataclass(frozen=True, kw_only=True)
class MuLanConfig:
    """Shape of both towers and of the quantiser. The defaults are `mini`."""

    embedding: int = 128
    """Width E of the joint space."""
    levels: int = 12
    """Levels V of the residual quantiser: prefix tokens a clip."""
    codes: int = 256
    """Codes C a level (1024 in `paper`)."""
    n_fft: int = 2048
    """Samples a spectrogram frame; 2048 tells semitones apart from 440 Hz up, which key and mode need."""
    hop: int = 480
    """Samples between frames: 50 Hz."""
    n_mels: int = 128
    """Mel bands M."""
    kernel: int = 5
    """Frames each of the two convolutions (stride 2) spans."""
    layers: int = 4
    """Transformer blocks of the music tower."""
    width: int = 192
    """Channels D of the music tower."""
    heads: int = 6
    """Attention heads of the music tower; they divide `width` into even head widths."""
    ffn: int = 768
    """Hidden channels of its feed-forward layers."""
    rhythm_bands: int = 4
    """Bands of the tempogram beside the tower; they divide `n_mels`. 0: none."""
    rhythm_lags: tuple[int, int] = (8, 200)
    """Lags of the tempogram, frames, the first included and the last not: 0.16 to 4 s at 50 Hz."""
    text: TextConfig = field(default_factory=TextConfig)
    """Shape of the text tower."""
    dtype: str = "float32"
    """Compute dtype of the music tower's matrix products; spectrogram, norms and softmax are float32."""


TINY = MuLanConfig(
    embedding=16, levels=12, codes=8, n_fft=512, n_mels=32, layers=1, width=32, heads=2, ffn=64, rhythm_bands=1,
    text=TextConfig(layers=1, width=32, heads=2, ffn=64),
)  # fmt: skip


def _linear(inputs: int, outputs: int, config: MuLanConfig, rngs: nnx.Rngs, gain: float = 1.0) -> nnx.Linear:
    init = nnx.initializers.normal(gain * inputs**-0.5)
    return nnx.Linear(inputs, outputs, kernel_init=init, dtype=jnp.dtype(config.dtype), rngs=rngs)


class FrontEnd(nnx.Module):
    """(B, F, M) mel frames to (B, ceil(F / 4), D)."""

    def __init__(self, config: MuLanConfig, *, rngs: nnx.Rngs) -> None:
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

    def __init__(self, config: MuLanConfig, *, rngs: nnx.Rngs) -> None:
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

    def __init__(self, config: MuLanConfig, *, rngs: nnx.Rngs) -> None:
        inputs = config.rhythm_bands * (config.rhythm_lags[1] - config.rhythm_lags[0])
        self.norm = RMSNorm(inputs, rngs=rngs)
        self.hidden = _linear(inputs, config.width, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """A norm, a layer and a GELU."""
        return jax.nn.gelu(self.hidden(self.norm(x.reshape(len(x), -1))))


def init(config: MuLanConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters of both towers, without what is fitted after training (means and codebooks).

    Raises:
        UserError: the heads do not divide the width into even head widths, or the rhythm's bands the mel bands.
    """
    if config.rhythm_bands and config.n_mels % config.rhythm_bands:
        raise UserError(f"{config.n_mels} mel bands do not divide into rhythm_bands {config.rhythm_bands}")
    if config.width % (2 * config.heads):
        raise UserError(f"width {config.width} must be a multiple of twice the {config.heads} heads")
    front, blocks, rhythm, encoder, music_key, text_key = jax.random.split(key, 6)
    width, words, joint = config.width, config.text.width, config.embedding
    pooled = (3 if config.rhythm_bands else 2) * width
    music = {
        "front": functional.init(FrontEnd, config, key=front),
        "blocks": functional.init_stack(Block, config, key=blocks, depth=config.layers),
        "norm": functional.init(RMSNorm, width, key=front),
        "projection": jax.random.normal(music_key, (pooled, joint)) * pooled**-0.5,
    }
    if config.rhythm_bands:
        music["rhythm"] = functional.init(Rhythm, config, key=rhythm)
    return {
        "music": music,
        "text": {
            "encoder": text.init(config.text, encoder),
            "projection": jax.random.normal(text_key, (words, joint)) * words**-0.5,
        },
    }


def unit(x: jax.Array) -> jax.Array:
    """x scaled to length 1 over its last axis; a zero vector stays zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def spectrogram(config: MuLanConfig, audio: jax.Array) -> jax.Array:
    """Log-mel frames (B, F, M) of audio (B, T), each clip's mean level taken out, scaled to about unit variance."""
    frames = spectral.log_mel(audio, config.n_fft, config.hop, config.n_mels)
    return (frames - frames.mean((1, 2), keepdims=True)) / 3.0


def embed_frames(params: Params, config: MuLanConfig, frames: jax.Array) -> jax.Array:
    """Unit embeddings (B, E) of spectrograms (B, F, M) that `spectrogram` made."""
    tower = params["music"]
    x = functional.bind(FrontEnd, config, params=tower["front"])(frames.astype(config.dtype))
    positions = jnp.arange(x.shape[1])
    x = functional.scan_blocks(Block, config, params=tower["blocks"], x=x, inputs=(positions,))
    x = functional.bind(RMSNorm, config.width, params=tower["norm"])(x).astype(jnp.float32)
    pooled = [x.mean(1), x.max(1)]
    if config.rhythm_bands:
        tempogram = spectral.tempogram(frames, config.rhythm_bands, config.rhythm_lags)
        pooled.append(functional.bind(Rhythm, config, params=tower["rhythm"])(tempogram).astype(jnp.float32))
    return unit(jnp.concatenate(pooled, axis=-1) @ tower["projection"])


def embed_music(params: Params, config: MuLanConfig, audio: jax.Array) -> jax.Array:
    """Unit embeddings (B, E) of audio (B, T), float32 at 24 kHz. Trained on windows of 5 to 10 s: average longer ones.

    The average of the windows' embeddings needs no scaling before `quantise`.
    """
    return embed_frames(params, config, spectrogram(config, audio))


def embed_text(params: Params, config: MuLanConfig, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Unit embeddings (B, E) of word pieces: ids and mask (B, N) of `data/text.py:tokenize`."""
    pooled = text.encode(params["text"]["encoder"], config.text, ids, mask)
    return unit(pooled @ params["text"]["projection"])


def centre(params: Params, embedding: jax.Array, modality: str) -> jax.Array:
    """Embeddings (..., E) with their modality's mean taken out, on the unit sphere again: what the quantiser sees.

    Raises:
        UserError: `modality` is neither "music" nor "text".
    """
    if modality not in ("music", "text"):
        raise UserError(f"modality {modality!r}: it must be 'music' or 'text'")
    return unit(unit(embedding) - params[f"{modality}_mean"])


def quantise(params: Params, config: MuLanConfig, embedding: jax.Array, modality: str = "music") -> jax.Array:
    """Prefix tokens (..., V) int32 in [0, C) of embeddings (..., E) of the modality, coarse level first."""
    return rvq.quantise(params["codebooks"][: config.levels], centre(params, embedding, modality))
