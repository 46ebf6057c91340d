"""The semantic tokenizer: 24 kHz audio to 25 Hz tokens, k-means over the activations of an encoder.

The paper (MeLoDy, arXiv 2305.15719, section 5.1) clusters a Wav2Vec2-Conformer (`models/wav2vec2.py`); `mini` has a
small Conformer over spectra (`models/conformer.py`), which needs less training data. The input for each 40 ms token is
four log-mel frames (timbre, attacks) and one log spectrum in semitone bands (pitch, which mel bands blur). The
diffusion stage receives only the tokens, so the clustered features can also contain that spectrum: `spectral_share`.

B batch, T samples, U = T // 960 tokens, F input channels, M mel bands, S semitone bands, D clustered features.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from melody_jax import spectral
from melody_jax.audio_format import SAMPLE_RATE, TOKEN_SAMPLES
from melody_jax.errors import UserError
from melody_jax.models import conformer, functional, nearest_code
from melody_jax.models.conformer import Conformer, ConformerConfig
from melody_jax.models.functional import Params
from melody_jax.models.wav2vec2 import MERT_95M, Wav2Vec2, Wav2Vec2Config
from melody_jax.roles import CODEBOOK, VECTOR, Roles

STACK = 4  # mel frames per token


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The encoder and the features that are clustered. The defaults are `mini`."""

    encoder: ConformerConfig | Wav2Vec2Config = field(default_factory=ConformerConfig)
    """The network whose activations are clustered."""
    spectral_share: float = 0.75
    """Share of the features' variance that comes from the token's spectrum, not from the activations; 0 to 1."""
    semantic_vocab: int = 1024
    """Clusters: token ids."""
    n_fft: int = 1024
    """Window of the log-mel frames in samples; their hop is 240 (100 Hz)."""
    n_mels: int = 80
    """Mel bands from 0 to 12 kHz."""
    semitone_low: int = 33
    """MIDI number of the lowest semitone band (33: A1, 55 Hz)."""
    semitones: int = 72
    """Semitone bands."""
    mel_mean: float = -3.9
    """Subtracted from log-mel values (natural logarithm of magnitude) before the network."""
    mel_std: float = 2.1
    """Divides log-mel values."""
    semitone_mean: float = 1.0
    """Subtracted from log semitone magnitudes."""
    semitone_std: float = 1.7
    """Divides log semitone magnitudes."""

    @property
    def channels(self) -> int:
        """Input channels F per token."""
        return STACK * self.n_mels + self.semitones

    @property
    def feature_width(self) -> int:
        """Clustered features D."""
        return self.encoder.width + (self.n_mels + self.semitones if self.spectral_share > 0 else 0)


TINY = TokenizerConfig(encoder=conformer.TINY, semantic_vocab=64)
"""For tests."""
PAPER = TokenizerConfig(encoder=Wav2Vec2Config(), spectral_share=0.0)
"""A Wav2Vec2-Conformer of 195.1 M parameters; the paper's has 199.5 M."""
MERT = TokenizerConfig(encoder=MERT_95M, spectral_share=0.0)
"""MERT-v1-95M, an open substitute; `convert/wav2vec2.py` reads its weights."""


@lru_cache(maxsize=8)
def _semitone_filters(low: int, count: int, n_fft: int) -> np.ndarray:
    """Triangular filters of unit sum, a semitone and at least two bins wide on each side: (n_fft // 2 + 1, count)."""
    bins = np.arange(n_fft // 2 + 1)[:, None]
    centre = 440.0 * 2.0 ** ((low + np.arange(count) - 69) / 12) * n_fft / SAMPLE_RATE
    half_width = np.maximum(centre * (2 ** (1 / 12) - 1), 2.0)
    triangles = np.maximum(0.0, 1.0 - np.abs(bins - centre) / half_width)
    return (triangles / triangles.sum(axis=0)).astype(np.float32)


class Quantiser(nnx.Module):
    """Standardisation and codebook, fitted after training; the two tokenizers inherit it beside their encoder."""

    def init_quantiser(self, config: TokenizerConfig) -> None:
        """Adds the parameters."""
        width = config.feature_width
        self.feature_mean = nnx.Param(jnp.zeros(width), role=VECTOR)
        self.feature_scale = nnx.Param(jnp.ones(width), role=VECTOR)
        self.codebook = nnx.Param(jnp.zeros((config.semantic_vocab, width)), role=CODEBOOK)


class ConformerTokenizer(Conformer, Quantiser):
    """A tokenizer over spectra."""

    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs) -> None:
        assert isinstance(config.encoder, ConformerConfig)
        super().__init__(config.encoder, config.channels, rngs=rngs)
        self.init_quantiser(config)


class Wav2Vec2Tokenizer(Wav2Vec2, Quantiser):
    """A tokenizer over the waveform."""

    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs) -> None:
        assert isinstance(config.encoder, Wav2Vec2Config)
        super().__init__(config.encoder, rngs=rngs)
        self.init_quantiser(config)


def _network(config: TokenizerConfig) -> type[ConformerTokenizer] | type[Wav2Vec2Tokenizer]:
    return ConformerTokenizer if isinstance(config.encoder, ConformerConfig) else Wav2Vec2Tokenizer


def roles(config: TokenizerConfig) -> Roles:
    """The role of every parameter."""
    return functional.roles(_network(config), config)


def shapes(config: TokenizerConfig) -> Params:
    """The shape and type of every parameter."""
    return functional.shapes(_network(config), config)


def init(config: TokenizerConfig, key: Key[Array, ""]) -> Params:
    """Fresh float32 parameters; standardisation and codebook are fitted after training."""
    return functional.init(_network(config), config, key=key)


def spectrum(
    config: TokenizerConfig, audio: Float[ArrayLike, "B T"]
) -> tuple[Float[Array, "B U 4 M"], Float[Array, "B U S"]]:
    """Normalised log-mel frames and log semitone spectra.

    Raises:
        UserError: the audio is shorter than one token.
    """
    audio = jnp.asarray(audio)
    batch = audio.shape[0]
    tokens = audio.shape[1] // TOKEN_SAMPLES
    if tokens < 1:
        raise UserError(f"the audio has {audio.shape[1]} samples: a token needs {TOKEN_SAMPLES}")
    hop = TOKEN_SAMPLES // STACK
    long_fft = 4096
    mel = spectral.log_mel(audio, config.n_fft, hop, config.n_mels)[:, : STACK * tokens]
    mel = (mel.reshape(batch, tokens, STACK, config.n_mels) - config.mel_mean) / config.mel_std
    filters = _semitone_filters(config.semitone_low, config.semitones, long_fft)
    bands = spectral.magnitude(spectral.stft(audio, long_fft, TOKEN_SAMPLES)) @ filters
    bands = jnp.log(jnp.maximum(bands, 1e-3))
    return mel, (bands - config.semitone_mean) / config.semitone_std


def subtract_level(bands: Float[Array, "... S"]) -> Float[Array, "... S"]:
    """Log spectra less their mean over the bands: which pitches sound, not how loud."""
    return bands - bands.mean(axis=-1, keepdims=True)


def stack(mel: Float[Array, "B U 4 M"], bands: Float[Array, "B U S"]) -> Float[Array, "B U F"]:
    """The Conformer's input channels from the result of `spectrum`."""
    return jnp.concatenate([mel.reshape(*mel.shape[:2], -1), bands], axis=-1)


def encode(
    params: Params, config: TokenizerConfig, inputs: Float[ArrayLike, "B ..."], layer: int
) -> Float[Array, "B U C"]:
    """Activations after `layer` blocks, from input channels (B, U, F) for a Conformer, else from audio (B, T)."""
    return functional.bind(_network(config), config, params=params).encode(jnp.asarray(inputs), layer)


def features(
    params: Params, config: TokenizerConfig, audio: Float[ArrayLike, "B T"], layer: int | None = None
) -> Float[Array, "B U D"]:
    """The clustered features before standardisation.

    Activations after `layer` blocks (default: the encoder's `layer`). If `spectral_share` > 0, then also the token's
    mean log-mel frame and its semitone spectrum less the level, which the mel bands already contain.

    Raises:
        UserError: the audio is shorter than one token.
    """
    mel, bands = spectrum(config, audio)
    layer = config.encoder.layer if layer is None else layer
    inputs = stack(mel, bands) if isinstance(config.encoder, ConformerConfig) else audio
    x = encode(params, config, inputs, layer)
    if config.spectral_share == 0:
        return x
    return jnp.concatenate([x, mel.mean(axis=2), subtract_level(bands)], axis=-1)


def standardise(params: Params, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Features in the metric of the codebook: centred, and scaled to the configured shares of variance."""
    return (x - params["feature_mean"]) * params["feature_scale"]


def tokenize(params: Params, config: TokenizerConfig, audio: Float[ArrayLike, "B T"]) -> Int[Array, "B U"]:
    """Semantic tokens int32 in [0, semantic_vocab) of mono audio at 24 kHz."""
    return nearest_code.assign(standardise(params, features(params, config, audio)), params["codebook"])
