"""The semantic tokenizer: 24 kHz audio to 25 Hz tokens, k-means over activations of an encoder (section 2.2).

The paper clusters a Wav2Vec2-Conformer (`models/wav2vec2.py`); `mini` a small Conformer over spectra
(`models/conformer.py`), which a small network needs less data for. Its input at each 40 ms token is four log-mel frames
(timbre, attacks) and one log spectrum in semitone bands (pitch, which mel bands blur). The diffusion stage hears the
tokens only, so what is clustered may be mixed with that spectrum itself: `spectral_share`.

B batch, T samples, U = T // 960 tokens, F input channels, D channels.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import spectral
from melody_jax.audio import SAMPLE_RATE, TOKEN_SAMPLES
from melody_jax.errors import UserError
from melody_jax.models import conformer, nearest_code, wav2vec2
from melody_jax.models.conformer import ConformerConfig
from melody_jax.models.functional import Params
from melody_jax.models.wav2vec2 import MERT_95M, Wav2Vec2Config

STACK = 4  # mel frames a token


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What listens and what is clustered. The defaults are `mini`."""

    encoder: ConformerConfig | Wav2Vec2Config = field(default_factory=ConformerConfig)
    """The network whose activations are clustered."""
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
        return self.encoder.width + (self.n_mels + self.semitones if self.spectral_share > 0 else 0)


TINY = TokenizerConfig(encoder=conformer.TINY, semantic_vocab=64)
"""For tests."""
PAPER = TokenizerConfig(encoder=Wav2Vec2Config(), spectral_share=0.0)
"""A Wav2Vec2-Conformer of 195.1 M parameters; the paper's has 199.5 M."""
MERT = TokenizerConfig(encoder=MERT_95M, spectral_share=0.0)
"""MERT-v1-95M, whose weights `convert/wav2vec2.py` reads, as an open stand-in."""


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
    bands = jnp.log(
        jnp.maximum(bands @ _semitone_filters(config.semitone_low, config.semitones, long_fft), 1e-3)
    )
    return mel, (bands - config.semitone_mean) / config.semitone_std


def init(config: TokenizerConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters; the codebook and its standardisation are fitted after training."""
    if isinstance(config.encoder, ConformerConfig):
        encoder = conformer.init(config.encoder, config.channels, key)
    else:
        encoder = wav2vec2.init(config.encoder, key)
    return encoder | {
        "feature_mean": jnp.zeros(config.feature_width),
        "feature_scale": jnp.ones(config.feature_width),
        "codebook": jnp.zeros((config.semantic_vocab, config.feature_width)),
    }


def without_level(bands: jax.Array) -> jax.Array:
    """Log spectra (..., S) less their mean over the bands: which pitches sound, not how loud."""
    return bands - bands.mean(axis=-1, keepdims=True)


def stack(mel: jax.Array, bands: jax.Array) -> jax.Array:
    """The network's input channels (B, U, F) from what `spectrum` returns."""
    return jnp.concatenate([mel.reshape(*mel.shape[:2], -1), bands], axis=-1)


def features(
    params: Params, config: TokenizerConfig, audio: jax.Array, layer: int | None = None
) -> jax.Array:
    """What is clustered, before standardisation: (B, T) -> (B, U, feature_width).

    Activations after `layer` blocks (default: the encoder's `layer`), then, if `spectral_share` > 0, the token's mean
    log-mel frame and its semitone spectrum without the level, which the mel bands hold already.

    Raises `UserError` if the audio is shorter than one token.
    """
    mel, bands = spectrum(config, audio)
    layer = config.encoder.layer if layer is None else layer
    if isinstance(config.encoder, ConformerConfig):
        x = conformer.encode(params, config.encoder, stack(mel, bands), layer)
    else:
        x = wav2vec2.features(params, config.encoder, audio, layer)
    if config.spectral_share == 0:
        return x
    return jnp.concatenate([x, mel.mean(axis=2), without_level(bands)], axis=-1)


def standardise(params: Params, x: jax.Array) -> jax.Array:
    """Features in the metric of the codebook: centred, scaled to the configured shares of variance."""
    return (x - params["feature_mean"]) * params["feature_scale"]


def tokenize(params: Params, config: TokenizerConfig, audio: jax.Array) -> jax.Array:
    """Semantic tokens: (B, T) mono at 24 kHz -> int32 (B, T // 960) in [0, semantic_vocab)."""
    return nearest_code.assign(standardise(params, features(params, config, audio)), params["codebook"])
