"""The audio autoencoder (MeLoDy, arXiv 2305.15719, section 4.2): audio to latents for the diffusion, and back.

    audio (B, T) --encoder--> mean, log variance (B, L, D) --sample, normalise--> latents (B, L, D) --decoder--> audio
    audio (B, T) --encoder--> (B, L, D) --residual quantiser--> codes (B, L, V) --> latents (B, L, D) --decoder--> audio

    audio (B, T) --log mel, normalise--> (B, L, D) --decoder--> audio

The first kind, a Gaussian regularised by its KL divergence, is MeLoDy's; the second, with a `quantiser`, is that of
AudioLM and MusicLM; the third, `mel`, whose decoder is a vocoder, is Noise2Music's. The config's `codec` chooses the
networks of the two halves: `models/stft_codec.py` (`mini`, `modern`) or `models/hifigan.py` (the paper). This file
holds what lies between them.

B batch, T samples (a multiple of `config.hop`), C channels of the audio, L = T / hop latents, D latent channels, V
levels of the quantiser.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from melody_jax import spectral
from melody_jax.audio_format import AudioFormat
from melody_jax.errors import UserError
from melody_jax.models import channels, functional, hifigan, rvq, stft_codec, stft_config
from melody_jax.models.functional import Params
from melody_jax.models.hifigan import HiFiGANConfig
from melody_jax.models.rvq import QuantiserConfig
from melody_jax.models.stft_config import StftCodecConfig
from melody_jax.models.stft_synthesis import MagnitudePair
from melody_jax.roles import STATISTIC, TRACKED, Roles

CODECS: dict[type, Callable[..., tuple[Any, Any]]] = {
    StftCodecConfig: stft_codec.halves,
    HiFiGANConfig: hifigan.halves,
}
"""Config of a codec -> function that makes its encoder and decoder, `halves`(config, outputs, latent_width, key).

Audio with two channels is (B, T, 2) in all of them.
encoder(audio (B, T)) gives float32 (B, L, outputs): the latents before quantisation, or mean and log variance
    concatenated.
decoder(latents (B, L, D), first) gives audio (B, L * hop), float32; `first` is the index of the first latent in a
    longer sequence. decoder.reconstruct(latents, audio): see `reconstruct`.
"""
LOG_VARIANCE_START = -5.0
"""Offset of the log variance: an untrained posterior is narrow, so latents carry information before the KL term can
suppress it."""


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The autoencoder."""

    latent_width: int = 64
    """Latent channels D."""
    latent_scale: float = 1.0
    """Initial divisor of the latents: 1 if they are whitened after training, 3 in the paper."""
    latent_clip: float | None = None
    """Bound on the normalised latents, applied by encode and decode (1 in the paper); None: no bound."""
    codec: StftCodecConfig | HiFiGANConfig = field(default_factory=StftCodecConfig)
    """The networks of the two halves."""
    quantiser: QuantiserConfig | None = None
    """The residual quantiser of the latents; None: a Gaussian posterior."""
    mel: bool = False
    """The latents are log mel magnitudes, D bands for all channels together. The encoder has no weights, and the
    `codec`'s fields for it are unused."""

    def __post_init__(self) -> None:
        samples = self.audio_format.token_samples
        if samples % self.hop:
            raise UserError(
                f"{self.hop} samples per latent do not divide the {samples} of a semantic token (25 Hz at "
                f"{self.codec.sample_rate} Hz); change the codec's frame_hop, downsample or rates"
            )
        if self.mel:
            self._check_mel()

    def _check_mel(self) -> None:
        if self.quantiser or self.latent_clip is not None:
            raise UserError("mel excludes quantiser and latent_clip: its latents are magnitudes")
        if not isinstance(self.codec, StftCodecConfig) or self.codec.low_hz:
            raise UserError("mel needs a codec of spectra with a single window (low_hz 0)")
        if self.latent_width % self.codec.channels:
            raise UserError(
                f"latent_width {self.latent_width}: {self.codec.channels} channels must divide it"
            )
        if self.hop > self.codec.n_fft:
            raise UserError(
                f"mel needs frames that overlap: n_fft {self.codec.n_fft} is less than the hop {self.hop}"
            )

    @property
    def hop(self) -> int:
        """Samples per latent."""
        return self.codec.hop

    @property
    def audio_format(self) -> AudioFormat:
        """Sample rate and channels of the audio, which is (B, T) with one channel, otherwise (B, T, C)."""
        return AudioFormat(sample_rate=self.codec.sample_rate, channels=self.codec.channels)


TINY = VAEConfig(latent_width=8, codec=stft_config.TINY)
"""For tests."""
TINY_CODES = VAEConfig(latent_width=8, codec=stft_config.TINY, quantiser=QuantiserConfig(levels=3, codes=16))
"""For tests: `TINY` with a quantiser."""
TINY_TWO_WINDOWS = VAEConfig(latent_width=8, codec=stft_config.TINY_TWO_WINDOWS)
"""For tests: `TINY` with a low band."""
TINY_MEL = VAEConfig(latent_width=16, codec=replace(stft_config.TINY, downsample=1), mel=True)
"""For tests: a vocoder, 100 Hz."""
PAPER = VAEConfig(latent_width=16, latent_scale=3.0, latent_clip=1.0, codec=HiFiGANConfig())
"""The published rates, channels and kernels: 250 latents of 16 channels per second."""
PAPER_CODES = VAEConfig(
    latent_width=128,
    codec=HiFiGANConfig(
        encoder_rates=(3, 4, 5, 8),
        encoder_channels=(64, 128, 256, 512),
        encoder_kernels=(7, 9, 11, 17),
        decoder_rates=(8, 5, 4, 3),
        decoder_channels=(512, 256, 128, 64),
        decoder_kernels=(17, 11, 9, 7),
    ),
    quantiser=QuantiserConfig(),
)
"""50 latents of 12 codes per second, the rates of MusicLM's SoundStream."""
MODERN = VAEConfig(codec=stft_config.MODERN)
"""48 kHz stereo, 50 latents of 64 channels per second."""
SMALL = VAEConfig(codec=stft_config.SMALL)
"""The same in and out, for one GPU."""


class VAE(nnx.Module):
    """Encoder, decoder and the statistics of the latents."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        key = rngs.default.key[...]
        width = config.latent_width
        outputs = width if config.quantiser else 2 * width
        encoder, self.decoder = CODECS[type(config.codec)](config.codec, outputs, width, key)
        self.encoder = None if config.mel else encoder
        if config.quantiser:
            shape = (config.quantiser.levels, config.quantiser.codes, width)
            self.codebooks = nnx.Param(jnp.zeros(shape), role=TRACKED)
        self.latent_mean = nnx.Param(jnp.zeros(config.latent_width), role=STATISTIC)
        self.latent_scale = nnx.Param(jnp.full(config.latent_width, config.latent_scale), role=STATISTIC)

    def encoder_output(self, audio: Float[Array, " B T *C"]) -> Float[Array, "B L _"]:
        """What the encoder writes."""
        samples = audio.shape[1]
        channels = self.config.codec.channels
        if audio.shape[2:] != (() if channels == 1 else (channels,)):
            raise UserError(f"audio of shape {audio.shape}: this autoencoder takes {channels} channels")
        if samples == 0 or samples % self.config.hop:
            raise UserError(f"{samples} samples: the encoder needs a positive multiple of {self.config.hop}")
        return _mel_bands(self.config, audio) if self.encoder is None else self.encoder(audio)

    def posterior(
        self, audio: Float[Array, " B T *C"]
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B L D"]]:
        """See the function `posterior`."""
        if self.config.mel or self.config.quantiser:
            raise UserError("this autoencoder has no posterior: its latents are mel bands or codes")
        mean, log_variance = jnp.split(self.encoder_output(audio), 2, axis=-1)
        return mean, jnp.clip(log_variance + LOG_VARIANCE_START, -12.0, 4.0)

    def codes(self, audio: Float[Array, " B T *C"]) -> Int[Array, "B L V"]:
        """See the function `codes`."""
        return rvq.quantise(self.codebooks[...], self.encoder_output(audio))

    def dequantise(self, codes: Int[Array, "B L W"]) -> Float[Array, "B L D"]:
        """See the function `dequantise`."""
        return self.normalise(rvq.dequantise(self.codebooks[...], codes))

    def normalise(self, raw: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """See the function `normalise`."""
        mean, scale = self._statistics()
        return self._clip((raw - mean) / scale)

    def decode(self, latents: Float[Array, "B L D"], first: ArrayLike = 0) -> Float[Array, " B T *C"]:
        """See the function `decode`."""
        return self.decoder(self._decoder_input(latents), first)

    def reconstruct(
        self, latents: Float[Array, "B L D"], audio: Float[Array, " B T *C"]
    ) -> tuple[Float[Array, " B T *C"], list[MagnitudePair]]:
        """See the function `reconstruct`."""
        return self.decoder.reconstruct(self._decoder_input(latents), audio)

    def _statistics(self) -> tuple[Array, Array]:
        return jax.lax.stop_gradient((self.latent_mean[...], self.latent_scale[...]))

    def _clip(self, latents: Array) -> Array:
        bound = self.config.latent_clip
        return latents if bound is None else jnp.clip(latents, -bound, bound)

    def _decoder_input(self, latents: Array) -> Array:
        """Normalised latents in the decoder's units.

        With `latent_clip` they are clipped and not scaled again (in the paper, the decoder is trained on scaled
        latents). Whitening, in contrast, is fitted after training and undone here.
        """
        if self.config.latent_clip is not None:
            return self._clip(latents)
        mean, scale = self._statistics()
        return latents * scale + mean


def _mel_bands(config: VAEConfig, audio: Float[Array, " B T *C"]) -> Float[Array, "B L D"]:
    """The latents of a `mel` autoencoder before normalisation, of about unit size."""
    codec = config.codec
    assert isinstance(codec, StftCodecConfig)
    bands = config.latent_width // codec.channels
    rows = spectral.log_mel(channels.to_rows(audio), codec.n_fft, config.hop, bands, codec.sample_rate)
    return channels.rows_to_features(0.4 * rows, codec.channels)


def init(config: VAEConfig, key: PRNGKeyArray) -> Params:
    """Fresh parameters: {"encoder", "decoder", "latent_mean" (D,), "latent_scale" (D,)}; with a quantiser, "codebooks"
    (V, C, D) too; with `mel`, no "encoder"."""
    return functional.init(VAE, config, key=key)


def roles(config: VAEConfig) -> Roles:
    """The role of every parameter, with the structure of what `init` returns."""
    return functional.roles(VAE, config)


def shapes(config: VAEConfig) -> Params:
    """The shape and type of every parameter."""
    return functional.shapes(VAE, config)


def _bind(params: Params, config: VAEConfig) -> VAE:
    return functional.bind(VAE, config, params=params)


def encoder_output(
    params: Params, config: VAEConfig, audio: Float[Array, " B T *C"]
) -> Float[Array, "B L _"]:
    """What the encoder writes for audio (B, T): float32 (B, L, D), with a quantiser the latents before quantisation.

    With `mel`, log mel magnitudes.

    Raises `UserError` where T is not a positive multiple of `config.hop`.
    """
    return _bind(params, config).encoder_output(audio)


def codes(params: Params, config: VAEConfig, audio: Float[Array, " B T *C"]) -> Int[Array, "B L V"]:
    """The codes of audio (B, T) in [0, C), coarse levels first. Raises `UserError` as `encoder_output` does."""
    return _bind(params, config).codes(audio)


def dequantise(params: Params, config: VAEConfig, codes: Int[Array, "B L W"]) -> Float[Array, "B L D"]:
    """The normalised latents of codes (B, L, W) of the first W levels, for `decode`."""
    return _bind(params, config).dequantise(codes)


def posterior(
    params: Params, config: VAEConfig, audio: Float[Array, " B T *C"]
) -> tuple[Float[Array, "B L D"], Float[Array, "B L D"]]:
    """Mean and log variance of the latents before normalisation: audio (B, T) to two float32 (B, L, D).

    Raises `UserError` where T is not a positive multiple of `config.hop`.
    """
    return _bind(params, config).posterior(audio)


def sample(
    mean: Float[Array, "B L D"], log_variance: Float[Array, "B L D"], key: PRNGKeyArray
) -> Float[Array, "B L D"]:
    """A draw from the diagonal Gaussian."""
    return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)


def normalise(params: Params, config: VAEConfig, raw: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    """Latents in the units of the diffusion: (raw - latent_mean) / latent_scale, clipped to `latent_clip`."""
    return _bind(params, config).normalise(raw)


def encode(
    params: Params, config: VAEConfig, audio: Float[Array, " B T *C"], key: PRNGKeyArray | None = None
) -> Float[Array, "B L D"]:
    """Audio (B, T) or (B, T, C) to normalised latents (B, L, D): the posterior's mean, or a draw from it given a key;
    with a quantiser, the latents of the codes; with `mel`, its bands.

    Raises `UserError` where T is not a positive multiple of `config.hop`.
    """
    network = _bind(params, config)
    if config.mel:
        return network.normalise(network.encoder_output(audio))
    if config.quantiser:
        return network.dequantise(network.codes(audio))
    mean, log_variance = network.posterior(audio)
    return network.normalise(mean if key is None else sample(mean, log_variance, key))


def decode(
    params: Params, config: VAEConfig, latents: Float[Array, "B L D"], first: ArrayLike = 0
) -> Float[Array, " B T *C"]:
    """Normalised latents (B, L, D) to audio (B, L * hop), or (B, L * hop, C), float32.

    first: the index of the first latent, if these are part of a longer sequence. Samples more than `decoder_reach`
    latents away from the part's ends are then the same as when the whole sequence is decoded.
    """
    return _bind(params, config).decode(latents, first)


def reconstruct(
    params: Params, config: VAEConfig, latents: Float[Array, "B L D"], audio: Float[Array, " B T *C"]
) -> tuple[Float[Array, " B T *C"], list[MagnitudePair]]:
    """For the losses in training: audio (B, L * hop), and the magnitudes that the decoder writes, with the original's.

    The audio is that of `decode`, but a codec without phase borrows the phase of the original audio (B, L * hop). A
    codec that writes samples has no magnitudes: its list is empty.
    """
    return _bind(params, config).reconstruct(latents, audio)


def decoder_reach(config: VAEConfig) -> int:
    """Receptive field of the decoder: latents before or after a sample's own that it depends on, at most."""
    return config.codec.decoder_reach


def encoder_reach(config: VAEConfig) -> int:
    """Receptive field of the encoder: samples before or after a latent's own `hop` that it depends on, at most."""
    if config.mel:
        assert isinstance(config.codec, StftCodecConfig)
        return (config.codec.n_fft - config.hop + 1) // 2
    return config.codec.encoder_reach
