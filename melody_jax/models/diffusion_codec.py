"""Moûsai's diffusion magnitude autoencoder (arXiv 2301.11757): its decoder is a diffusion.

    audio (B, T) --|STFT|--> encoder --tanh, normalise--> latents (B, L, D)
    noise (B, F, E), latents --diffusion--> complex spectra (B, F, E) --inverse STFT--> audio (B, T)

The encoder is that of `models/stft_codec.py`. The decoder is a backbone of `models/denoiser.py` that refines the
latents as frames of a lower rate; it invents the phase, of which the latents know nothing. It works on the frames of a
short-time spectrum, where the paper's works on samples. Their magnitudes are raised to a power, as for speech
enhancement by diffusion (arXiv 2208.05830), so that quiet bins count.

B batch, T samples (a multiple of `config.hop`), C channels, L = T / hop latents, D latent channels, F frames, E = 2 C
bins numbers of a frame: real and imaginary parts.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from melody_jax import spectral
from melody_jax.audio_format import AudioFormat
from melody_jax.errors import UserError
from melody_jax.models import channels, denoiser, functional, stft_config, unet1d
from melody_jax.models.conditioning import LowerFrames
from melody_jax.models.denoiser import BACKBONES, DenoiserConfig
from melody_jax.models.functional import Params
from melody_jax.models.stft_codec import StftEncoder
from melody_jax.models.stft_config import StftCodecConfig
from melody_jax.models.unet1d import UNet1DConfig
from melody_jax.roles import STATISTIC, Roles

SMALLEST_MAGNITUDE = 1e-8


@dataclass(frozen=True, kw_only=True)
class DiffusionCodecConfig:
    """Shape of both halves."""

    latent_width: int = 32
    """Latent channels D."""
    codec: StftCodecConfig = field(default_factory=StftCodecConfig)
    """Windows of the spectra, and the encoder; fields of a decoder are not used."""
    decoder: DenoiserConfig = field(
        default_factory=lambda: UNet1DConfig(
            latent_dim=1026,
            frames=256,
            chunks=1,
            frames_per_token=4,
            semantic_tokens=0,
            cross_attention=False,
            lower_ratio=4,
            lower_dim=32,
            channels=(256, 384, 512),
            attention_levels=0,
        )
    )
    """The network of the diffusion. `frames` are those of training; clips are longer, so it should not attend along
    them (`attention_levels` 0)."""
    power: float = 0.5
    """Magnitudes are raised to this power, above 0 and at most 1."""
    frame_scale: float = 0.15
    """Divisor of the numbers of a frame, about their standard deviation for music."""

    def __post_init__(self) -> None:
        numbers = 2 * self.codec.channels * self.codec.bins
        wanted = {
            "latent_dim": numbers,
            "lower_ratio": self.codec.downsample,
            "lower_dim": self.latent_width,
            "lower_noise": 0.0,
            "chunks": 1,
            "prefix_conditioning": False,
            "controls": None,
            "guidance_range": None,
        }
        for name, value in wanted.items():
            if getattr(self.decoder, name) != value:
                raise UserError(f"decoder.{name} is {getattr(self.decoder, name)}; this codec needs {value}")
        if self.decoder.has_tokens:
            raise UserError(
                "the decoder follows tokens; it must follow the latents alone: set semantic_tokens to 0"
            )
        if not 0 < self.power <= 1:
            raise UserError(f"power is {self.power}; it must be above 0 and at most 1")
        if not self.frame_scale > 0:
            raise UserError(f"frame_scale is {self.frame_scale}; it must be above 0")

    @property
    def hop(self) -> int:
        """Samples per latent."""
        return self.codec.hop

    @property
    def audio_format(self) -> AudioFormat:
        """Sample rate and channels of the audio."""
        return AudioFormat(sample_rate=self.codec.sample_rate, channels=self.codec.channels)


TINY = DiffusionCodecConfig(
    latent_width=8,
    codec=replace(stft_config.TINY, n_fft=512),
    decoder=replace(
        unet1d.TINY,
        latent_dim=514,
        frames=64,
        chunks=1,
        frames_per_token=4,
        semantic_tokens=0,
        cross_attention=False,
        attention_levels=0,
        prefix_conditioning=False,
        lower_ratio=4,
        lower_dim=8,
    ),
)
"""For tests."""


class DiffusionCodec(nnx.Module):
    """Encoder, decoder and the statistics of the latents."""

    def __init__(self, config: DiffusionCodecConfig, *, rngs: nnx.Rngs) -> None:
        keys = functional.split_key(rngs, 4)
        self.encoder = StftEncoder(config.codec, config.latent_width, keys[:3])
        self.decoder = BACKBONES[type(config.decoder)](config.decoder, rngs=functional.make_rngs(keys[3]))
        self.latent_mean = nnx.Param(jnp.zeros(config.latent_width), role=STATISTIC)
        self.latent_scale = nnx.Param(jnp.ones(config.latent_width), role=STATISTIC)


def init(config: DiffusionCodecConfig, key: PRNGKeyArray) -> Params:
    """Fresh parameters: {"encoder", "decoder", "latent_mean" (D,), "latent_scale" (D,)}."""
    return functional.init(DiffusionCodec, config, key=key)


def roles(config: DiffusionCodecConfig) -> Roles:
    """The role of every parameter, with the structure of what `init` returns."""
    return functional.roles(DiffusionCodec, config)


def shapes(config: DiffusionCodecConfig) -> Params:
    """The shape and type of every parameter."""
    return functional.shapes(DiffusionCodec, config)


def encode_raw(
    params: Params, config: DiffusionCodecConfig, audio: Float[Array, " B T *C"]
) -> Float[Array, "B L D"]:
    """Latents in [-1, 1] before normalisation.

    Raises `UserError` where T is not a positive multiple of `config.hop`.
    """
    samples = audio.shape[1]
    if samples == 0 or samples % config.hop:
        raise UserError(f"{samples} samples: the encoder needs a positive multiple of {config.hop}")
    network = functional.bind(DiffusionCodec, config, params={"encoder": params["encoder"]})
    return jnp.tanh(network.encoder(audio))


def encode(
    params: Params, config: DiffusionCodecConfig, audio: Float[Array, " B T *C"]
) -> Float[Array, "B L D"]:
    """Audio to normalised latents. Raises `UserError` as `encode_raw`."""
    return (encode_raw(params, config, audio) - params["latent_mean"]) / params["latent_scale"]


def to_frames(config: DiffusionCodecConfig, audio: Float[Array, " B T *C"]) -> Float[Array, "B F E"]:
    """What the diffusion writes, of about unit size."""
    spectrum = spectral.stft(channels.to_rows(audio), config.codec.n_fft, config.codec.frame_hop)
    spectrum = _raised(spectrum / spectral.window_gain(config.codec.n_fft), config.power) / config.frame_scale
    parts = jnp.concatenate([spectrum.real, spectrum.imag], axis=-1)
    return channels.rows_to_features(parts, config.codec.channels)


def from_frames(config: DiffusionCodecConfig, frames: Float[Array, "B F E"]) -> Float[Array, " B T *C"]:
    """The audio (B, F * frame_hop) or (B, F * frame_hop, C) of frames; undoes `to_frames`."""
    codec = config.codec
    real, imaginary = jnp.split(channels.features_to_rows(frames, codec.channels), 2, axis=-1)
    spectrum = _raised(config.frame_scale * jax.lax.complex(real, imaginary), 1 / config.power)
    rows = spectral.istft(spectrum * spectral.window_gain(codec.n_fft), codec.n_fft, codec.frame_hop)
    return channels.from_rows(rows, codec.channels)


def velocity(
    params: Params,
    config: DiffusionCodecConfig,
    noisy: Float[Array, "B F E"],
    angle: Float[Array, "B F"],
    raw: Float[Array, "B L D"],
) -> Float[Array, "B F E"]:
    """The velocity of noisy frames, given latents as `encode_raw` makes them."""
    lower = LowerFrames(raw, jnp.zeros(len(raw)))
    return denoiser.velocity(params["decoder"], config.decoder, noisy, angle, None, len(noisy), lower=lower)


def denormalise(params: Params, latents: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    """Latents in the decoder's units."""
    return latents * params["latent_scale"] + params["latent_mean"]


def _raised(spectrum: Array, power: float) -> Array:
    """A spectrum whose magnitudes are raised to a power; phases stay."""
    if power == 1:
        return spectrum
    size = jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + SMALLEST_MAGNITUDE**2)
    return spectrum * size ** (power - 1)
