"""The semantic tokenizer: 24 kHz audio to 25 Hz tokens, k-means over activations of a small Conformer (section 2.2).

The paper clusters a Wav2Vec2-Conformer; this one is trained by masked prediction (`training/stages/tokenizer.py`) on
spectra instead of waveforms, which a small network needs less data for. Its input at each 40 ms token is four log-mel
frames (timbre, attacks) and one log spectrum in semitone bands (pitch, which mel bands blur). The diffusion stage hears
the tokens only, so what is clustered may be mixed with that spectrum itself: `spectral_share`.

B batch, T samples, U = T // 960 tokens, F input channels, D channels, H heads.
"""

from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from melody_jax import spectral
from melody_jax.audio import SAMPLE_RATE
from melody_jax.errors import UserError
from melody_jax.models import functional, kmeans
from melody_jax.models.functional import Params
from melody_jax.models.layers import MASKED, RMSNorm, attend, depthwise_conv, merge_heads, rotary, split_heads

TOKEN_SAMPLES = 960
STACK = 4


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Shape of the tokenizer. The defaults are `mini`: 2.0 M parameters, 1.2 GFLOP per 10 s in all blocks."""

    layers: int = 4
    """Conformer blocks."""
    width: int = 160
    """Channels D."""
    heads: int = 4
    """Attention heads; they divide `width` into even head widths."""
    ffn: int = 448
    """Hidden channels of each of a block's two feed-forward layers."""
    kernel: int = 15
    """Taps of the depthwise convolution, tokens, odd."""
    attention_window: int = 24
    """How many tokens to each side attention sees. A finite window keeps tokens stable near the ends of a crop."""
    layer: int = 2
    """Which activations are clustered: after this many blocks, 0 to `layers`."""
    spectral_share: float = 0.75
    """Share of the clustered vectors' variance that is the token's spectrum rather than the activations, 0 to 1."""
    semantic_vocab: int = 1024
    """Clusters, that is token ids."""
    n_fft: int = 1024
    """Window of the log-mel frames, samples; their hop is 240 (100 Hz)."""
    n_mels: int = 80
    """Mel bands from 0 to 12 kHz."""
    semitone_low: int = 33
    """MIDI number of the lowest semitone band (33: A1, 55 Hz)."""
    semitones: int = 72
    """Semitone bands."""
    mel_mean: float = -3.9
    """Subtracted from log-mel values (natural logarithm of magnitude) before the network."""
    mel_std: float = 2.1
    """Divides them."""
    semitone_mean: float = 1.0
    """Subtracted from log semitone magnitudes."""
    semitone_std: float = 1.7
    """Divides them."""

    @property
    def channels(self) -> int:
        """Input channels F of a token."""
        return STACK * self.n_mels + self.semitones

    @property
    def feature_width(self) -> int:
        """Channels of what is clustered."""
        return self.width + (self.n_mels + self.semitones if self.spectral_share > 0 else 0)


TINY = TokenizerConfig(layers=2, width=32, heads=2, ffn=64, kernel=5, attention_window=6, layer=1, semantic_vocab=64)
"""For tests."""
PAPER = TokenizerConfig(layers=14, width=768, heads=12, ffn=3072, kernel=31, attention_window=128, layer=7)
"""The paper's 195 M parameters."""


@lru_cache(maxsize=8)
def _semitone_filters(low: int, count: int, n_fft: int) -> np.ndarray:
    """Triangles a semitone wide to each side, at least two bins to each side, of unit sum: (n_fft // 2 + 1, count)."""
    bins = np.arange(n_fft // 2 + 1)[:, None]
    centre = 440.0 * 2.0 ** ((low + np.arange(count) - 69) / 12) * n_fft / SAMPLE_RATE
    reach = np.maximum(centre * (2 ** (1 / 12) - 1), 2.0)
    triangles = np.maximum(0.0, 1.0 - np.abs(bins - centre) / reach)
    return (triangles / triangles.sum(axis=0)).astype(np.float32)


def spectrum(config: TokenizerConfig, audio: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Normalised log-mel frames (B, U, 4, n_mels) and log semitone spectra (B, U, semitones) of audio (B, T).

    Raises `UserError` if the audio is shorter than one token.
    """
    batch, tokens = audio.shape[0], audio.shape[1] // TOKEN_SAMPLES
    if tokens < 1:
        raise UserError(f"audio of {audio.shape[1]} samples; a token needs {TOKEN_SAMPLES}")
    hop, long_fft = TOKEN_SAMPLES // STACK, 4096
    mel = spectral.log_mel(audio, config.n_fft, hop, config.n_mels)[:, : STACK * tokens]
    mel = (mel.reshape(batch, tokens, STACK, config.n_mels) - config.mel_mean) / config.mel_std
    bands = spectral.magnitude(spectral.stft(audio, long_fft, TOKEN_SAMPLES))
    bands = jnp.log(jnp.maximum(bands @ _semitone_filters(config.semitone_low, config.semitones, long_fft), 1e-3))
    return mel, (bands - config.semitone_mean) / config.semitone_std


class FeedForward(nnx.Module):
    """Pre-norm two-layer SiLU network without the residual."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.norm = RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) to what is added to it."""
        return self.down(jax.nn.silu(self.up(self.norm(x))))


class Convolution(nnx.Module):
    """The Conformer's convolution module without the residual: gated pointwise, depthwise, norm, SiLU, pointwise.

    The norm is over channels, where the original has one over the batch: nothing depends on other items or on length.
    """

    def __init__(self, width: int, kernel: int, *, rngs: nnx.Rngs) -> None:
        self.norm = RMSNorm(width, rngs=rngs)
        self.gate = nnx.Linear(width, 2 * width, rngs=rngs)
        self.depthwise = nnx.Param(jax.random.normal(rngs.params(), (kernel, width)) * kernel**-0.5)
        self.middle = RMSNorm(width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, U, D) to what is added to it."""
        value, gate = jnp.split(self.gate(self.norm(x)), 2, axis=-1)
        h = depthwise_conv(value * jax.nn.sigmoid(gate), self.depthwise[...])
        return self.out(jax.nn.silu(self.middle(h)))


class Block(nnx.Module):
    """A Conformer block (arXiv 2005.08100) with rotary positions: half feed-forward, attention, convolution, half."""

    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs) -> None:
        self.heads = config.heads
        self.before = FeedForward(config.width, config.ffn, rngs=rngs)
        self.attention_norm = RMSNorm(config.width, rngs=rngs)
        self.qkv = nnx.Linear(config.width, 3 * config.width, use_bias=False, rngs=rngs)
        self.attention_out = nnx.Linear(config.width, config.width, rngs=rngs)
        self.convolution = Convolution(config.width, config.kernel, rngs=rngs)
        self.after = FeedForward(config.width, config.ffn, rngs=rngs)
        self.norm = RMSNorm(config.width, rngs=rngs)

    def __call__(self, x: jax.Array, positions: jax.Array, bias: jax.Array) -> jax.Array:
        """(B, U, D) to (B, U, D); `positions` (U,) in tokens, `bias` (U, U) additive."""
        x = x + 0.5 * self.before(x)
        q, k, v = (split_heads(h, self.heads) for h in jnp.split(self.qkv(self.attention_norm(x)), 3, axis=-1))
        attended = attend(rotary(q, positions), rotary(k, positions), v, bias)
        x = x + self.attention_out(merge_heads(attended))
        x = x + self.convolution(x)
        return self.norm(x + 0.5 * self.after(x))


def init(config: TokenizerConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters; the codebook and its standardisation are fitted after training.

    Raises `UserError` if the shape is impossible.
    """
    if config.width % (2 * config.heads):
        raise UserError(f"width {config.width} must be a multiple of twice the {config.heads} heads")
    if config.kernel % 2 == 0:
        raise UserError(f"kernel {config.kernel} must be odd")
    if not 0 <= config.layer <= config.layers:
        raise UserError(f"layer {config.layer} must lie in 0 to {config.layers}")
    input_key, block_key = jax.random.split(key)
    return {
        "input": functional.init(nnx.Linear, config.channels, config.width, key=input_key),
        "blocks": functional.init_stack(Block, config, key=block_key, depth=config.layers),
        "feature_mean": jnp.zeros(config.feature_width),
        "feature_scale": jnp.ones(config.feature_width),
        "codebook": jnp.zeros((config.semantic_vocab, config.feature_width)),
    }


def hidden(params: Params, config: TokenizerConfig, inputs: jax.Array, layer: int) -> jax.Array:
    """Activations (B, U, D) after `layer` blocks of normalised input channels (B, U, F)."""
    x = functional.bind(nnx.Linear, config.channels, config.width, params=params["input"])(inputs)
    positions = jnp.arange(x.shape[1])
    bias = MASKED * (jnp.abs(positions - positions[:, None]) > config.attention_window)
    blocks = jax.tree.map(lambda leaf: leaf[:layer], params["blocks"])
    return functional.scan_blocks(Block, config, params=blocks, x=x, inputs=(positions, bias))


def without_level(bands: jax.Array) -> jax.Array:
    """Log spectra (..., S) less their mean over the bands: which pitches sound, not how loud."""
    return bands - bands.mean(axis=-1, keepdims=True)


def stack(mel: jax.Array, bands: jax.Array) -> jax.Array:
    """The network's input channels (B, U, F) from what `spectrum` returns."""
    return jnp.concatenate([mel.reshape(*mel.shape[:2], -1), bands], axis=-1)


def features(params: Params, config: TokenizerConfig, audio: jax.Array, layer: int | None = None) -> jax.Array:
    """What is clustered, before standardisation: (B, T) -> (B, U, feature_width).

    Activations after `layer` blocks (default `config.layer`), then, if `spectral_share` > 0, the token's mean log-mel
    frame and its semitone spectrum without the level, which the mel bands hold already.
    """
    mel, bands = spectrum(config, audio)
    x = hidden(params, config, stack(mel, bands), config.layer if layer is None else layer)
    if config.spectral_share == 0:
        return x
    return jnp.concatenate([x, mel.mean(axis=2), without_level(bands)], axis=-1)


def standardise(params: Params, x: jax.Array) -> jax.Array:
    """Features in the metric of the codebook: centred, scaled to the configured shares of variance."""
    return (x - params["feature_mean"]) * params["feature_scale"]


def tokenize(params: Params, config: TokenizerConfig, audio: jax.Array) -> jax.Array:
    """Semantic tokens: (B, T) mono at 24 kHz -> int32 (B, T // 960) in [0, semantic_vocab)."""
    return kmeans.assign(standardise(params, features(params, config, audio)), params["codebook"])
