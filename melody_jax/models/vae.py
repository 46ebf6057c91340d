"""The audio autoencoder (MeLoDy section 2.5): audio to latents for the diffusion, and latents to audio.

    audio (B, T) --encoder--> mean, log variance (B, L, D) --sample, normalise--> latents (B, L, D) --decoder--> audio

Which networks the two halves are is the config's `codec`: `models/stft_codec.py` (`mini`, `modern`) or
`models/hifigan.py` (the paper). What stands between them is here.

B batch, T samples (a multiple of `config.hop`), L = T / hop latents, D latent channels.
"""

from dataclasses import dataclass, field
from types import ModuleType

import jax
import jax.numpy as jnp

from melody_jax.errors import UserError
from melody_jax.models import hifigan, stft_codec
from melody_jax.models.functional import Params
from melody_jax.models.hifigan import HiFiGANConfig
from melody_jax.models.stft_codec import MagnitudesConfig

CODECS: dict[type, ModuleType] = {MagnitudesConfig: stft_codec, HiFiGANConfig: hifigan}
"""Which module a codec's config is for."""
LOG_VARIANCE_START = (
    -5.0
)  # a fresh posterior is narrow: the latents carry something before the KL term silences them


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The autoencoder. Defaults are `mini`."""

    latent_width: int = 64
    """Latent channels D."""
    latent_scale: float = 1.0
    """Initial divisor of the latents: 1 where they are whitened after training, 3 in the paper."""
    latent_clip: float | None = None
    """Bound on the normalised latents, applied by encode and decode (1 in the paper), or None: no bound."""
    codec: MagnitudesConfig | HiFiGANConfig = field(default_factory=MagnitudesConfig)
    """The networks of the two halves."""

    @property
    def hop(self) -> int:
        """Samples to a latent."""
        return self.codec.hop


TINY = VAEConfig(latent_width=8, codec=stft_codec.TINY)
"""For tests."""
PAPER = VAEConfig(latent_width=16, latent_scale=3.0, latent_clip=1.0, codec=HiFiGANConfig())
"""The published rates, channels and kernels: 250 latents of 16 channels a second."""
MODERN = VAEConfig(codec=stft_codec.MODERN)
"""50 latents of 64 channels a second."""


def init(config: VAEConfig, key: jax.Array) -> Params:
    """Fresh parameters: {"encoder", "decoder", "latent_mean" (D,), "latent_scale" (D,)}."""
    return CODECS[type(config.codec)].init(config.codec, config.latent_width, key) | {
        "latent_mean": jnp.zeros(config.latent_width),
        "latent_scale": jnp.full(config.latent_width, config.latent_scale),
    }


def posterior(params: Params, config: VAEConfig, audio: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log variance of the latents before normalisation: audio (B, T) to two float32 (B, L, D).

    Raises `UserError` where T is not a positive multiple of `config.hop`.
    """
    samples = audio.shape[-1]
    if samples == 0 or samples % config.hop:
        raise UserError(f"{samples} samples: the encoder needs a positive multiple of {config.hop}")
    both = CODECS[type(config.codec)].encode(params, config.codec, config.latent_width, audio)
    mean, log_variance = jnp.split(both, 2, axis=-1)
    return mean, jnp.clip(log_variance + LOG_VARIANCE_START, -12.0, 4.0)


def sample(mean: jax.Array, log_variance: jax.Array, key: jax.Array) -> jax.Array:
    """A draw from the diagonal Gaussian."""
    return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)


def _statistics(params: Params) -> tuple[jax.Array, jax.Array]:
    return jax.lax.stop_gradient((params["latent_mean"], params["latent_scale"]))


def normalise(params: Params, config: VAEConfig, raw: jax.Array) -> jax.Array:
    """Latents in the units of the diffusion: (raw - latent_mean) / latent_scale, clipped if the config says so."""
    mean, scale = _statistics(params)
    return _clip(config, (raw - mean) / scale)


def _clip(config: VAEConfig, latents: jax.Array) -> jax.Array:
    return (
        latents if config.latent_clip is None else jnp.clip(latents, -config.latent_clip, config.latent_clip)
    )


def _for_decoder(params: Params, config: VAEConfig, latents: jax.Array) -> jax.Array:
    """Normalised latents in the decoder's units.

    With `latent_clip` they are clipped and not scaled a second time (the paper's kind: its decoder is trained on scaled
    latents), whereas whitening comes after training and is undone here.
    """
    if config.latent_clip is not None:
        return _clip(config, latents)
    mean, scale = _statistics(params)
    return latents * scale + mean


def encode(params: Params, config: VAEConfig, audio: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Audio (B, T) at 24 kHz to normalised latents (B, L, D): the posterior's mean, or a draw from it given a key.

    Raises `UserError` where T is not a positive multiple of `config.hop`.
    """
    mean, log_variance = posterior(params, config, audio)
    return normalise(params, config, mean if key is None else sample(mean, log_variance, key))


def decode(
    params: Params, config: VAEConfig, latents: jax.Array, first: jax.typing.ArrayLike = 0
) -> jax.Array:
    """Normalised latents (B, L, D) to audio (B, L * hop), float32.

    first: the number of the first latent in its piece, where these are a part: what lies `decoder_reach` latents from
    a part's ends is then decoded as in the whole.
    """
    return CODECS[type(config.codec)].decode(
        params, config.codec, _for_decoder(params, config, latents), first
    )


def reconstruct(params: Params, config: VAEConfig, latents: jax.Array, audio: jax.Array) -> jax.Array:
    """`decode` as training hears it: a codec without phase borrows that of the original audio (B, L * hop)."""
    codec = CODECS[type(config.codec)]
    return codec.reconstruct(params, config.codec, _for_decoder(params, config, latents), audio)


def decoder_reach(config: VAEConfig) -> int:
    """How many latents on either side of its own a sample of the decoder's can depend on, at most."""
    return CODECS[type(config.codec)].decoder_reach(config.codec)


def encoder_reach(config: VAEConfig) -> int:
    """How many samples on either side of its own `hop` a latent can depend on, at most."""
    return CODECS[type(config.codec)].encoder_reach(config.codec)
