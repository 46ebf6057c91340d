"""The autoencoder's two halves that work on short-time spectra, in `mini` and `modern`; `models/vae.py` uses them.

    audio (B, T) --|STFT|--> 100 Hz frames --blocks--> x4 down --blocks--> mean, log variance (B, L, 2 D) at 25 Hz
    latents (B, L, D) --blocks--> x4 up --blocks--> magnitudes (B, F, bins) --Griffin-Lim--> audio (B, T)

The latents carry no phase. At 25 Hz phase looks like white noise: a network small enough for a laptop cannot predict it
from semantic tokens, and latents full of it leave the diffusion nothing to learn (docs/mini.md has the figures). A
larger decoder may output a phase next to the magnitudes, `phase` (an inverse-STFT decoder as in Vocos, arXiv
2306.00814): it learns a plausible one from its discriminators, and decodes in one pass.

With `low_hz` the codec has two resolutions: the decoder writes the bins below it for a longer window too
(`models/low_band.py`). Phases of that band are searched first. The waveform that results is fixed while the phases of
the short window are searched above the band. The encoder sees the band's bins of the long window, and all bins of the
short one, which places attacks in the band.

Audio with two channels is (B, T, 2). Each has magnitudes of its own, side by side in a frame. Phases are searched for
each alone, but from the same beginning, so that equal magnitudes give equal channels: mono stays mono.

B batch, T samples (a multiple of `config.hop`), F = T / frame_hop frames, L = T / hop latents, D latent channels, C
channels of the audio, R = B * C rows.
Norms act on channels only and there is no attention: every magnitude depends on a finite range of latents, the same
everywhere (`decoder_reach`, `encoder_reach`).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from melody_jax import spectral
from melody_jax.models import channels, functional
from melody_jax.models.layers import Linear, RMSNorm
from melody_jax.models.platform import depthwise_conv
from melody_jax.models.stft_config import KERNEL, StftCodecConfig
from melody_jax.models.stft_synthesis import (
    MagnitudePair,
    Magnitudes,
    magnitude_pairs,
    magnitudes,
    spectra,
    synthesise,
    synthesise_with_phase,
)
from melody_jax.roles import CONV, NORM

Widths = tuple[int, int]
"""Input and output channels of a projection."""

BLOCK_GAIN = 0.3
"""Initial gain of a block's residual branch."""
QUIET = -4.0
"""Log magnitude of an untrained decoder's output."""
LOUDEST = 6.0
"""Log magnitude that no full-scale sound exceeds."""
LOG_FLOOR = 1e-3
"""Added to magnitudes before the logarithm: 60 dB below full-scale noise."""


class ConvNeXtBlock(nnx.Module):
    """ConvNeXt block over time: depthwise convolution, channel norm, two-layer perceptron, gain, residual."""

    def __init__(self, width: int, expansion: int, dtype: str, *, rngs: nnx.Rngs) -> None:
        kernel = jax.random.normal(rngs.params(), (KERNEL, width)) * KERNEL**-0.5
        self.kernel = nnx.Param(kernel, role=CONV)
        self.norm = RMSNorm(width, rngs=rngs)
        self.up = Linear(width, width * expansion, lora=True, dtype=dtype, rngs=rngs)
        self.down = Linear(width * expansion, width, role="row", lora=True, dtype=dtype, rngs=rngs)
        self.scale = nnx.Param(jnp.full(width, BLOCK_GAIN), role=NORM)

    def __call__(self, x: Float[Array, "B F W"]) -> Float[Array, "B F W"]:
        """(B, F, W) -> the same."""
        h = self.norm(depthwise_conv(x, self.kernel[...]))
        return x + self.down(jax.nn.gelu(self.up(h))) * self.scale[...].astype(x.dtype)


class Projections(nnx.Module):
    """The projections around the blocks of one half: at the input, between the two rates, and at the output."""

    def __init__(self, entry: Widths, middle: Widths, out: Widths, dtype: str, *, rngs: nnx.Rngs) -> None:
        self.entry = Linear(*entry, dtype=dtype, rngs=rngs)
        self.middle = Linear(*middle, dtype=dtype, rngs=rngs)
        self.norm = RMSNorm(out[0], rngs=rngs)
        self.out = Linear(*out, role="row", dtype=dtype, rngs=rngs)


def _apply_blocks(blocks: ConvNeXtBlock, depth: int, x: Array) -> Array:
    """Applies stacked blocks, unrolled: there are few, and on XLA:CPU a scan over them takes a quarter longer."""
    for block in functional.unstack(blocks, depth):
        x = block(x)
    return x


def spectral_features(config: StftCodecConfig, audio: Float[Array, " B T *C"]) -> Float[Array, "B F _"]:
    """The encoder's input: (B, T) -> (B, F, C * (bins + N)), log magnitudes scaled to about unit size."""
    size = magnitudes(spectra(config, channels.to_rows(audio)))
    scaled = size.short / spectral.window_gain(config.n_fft)
    if size.low is not None:
        scaled = jnp.concatenate([scaled, size.low / spectral.window_gain(config.low_window)], axis=-1)
    return channels.rows_to_features(0.4 * jnp.log(scaled + LOG_FLOOR) + 1.6, config.channels)


class StftEncoder(nnx.Module):
    """Audio to latents, or to their mean and log variance."""

    def __init__(self, config: StftCodecConfig, outputs: int, keys: PRNGKeyArray) -> None:
        c = config
        self.config = c
        self.ends = Projections(
            (c.channels * (c.bins + c.low_bins), c.encoder_frame_width),
            (c.encoder_frame_width * c.downsample, c.encoder_latent_width),
            (c.encoder_latent_width, outputs),
            c.dtype,
            rngs=functional.make_rngs(keys[0]),
        )
        self.frame_blocks = functional.stack(
            ConvNeXtBlock,
            c.encoder_frame_width,
            c.frame_expansion,
            c.dtype,
            depth=c.encoder_frame_blocks,
            key=keys[1],
        )
        self.latent_blocks = functional.stack(
            ConvNeXtBlock,
            c.encoder_latent_width,
            c.latent_expansion,
            c.dtype,
            depth=c.encoder_latent_blocks,
            key=keys[2],
        )

    def __call__(self, audio: Float[Array, " B T *C"]) -> Float[Array, "B L _"]:
        """Audio (B, T) or (B, T, C), T a multiple of `config.hop`, to float32 (B, L, outputs)."""
        config = self.config
        x = self.ends.entry(spectral_features(config, audio).astype(config.dtype))
        x = _apply_blocks(self.frame_blocks, config.encoder_frame_blocks, x)
        x = self.ends.middle(x.reshape(x.shape[0], -1, config.downsample * config.encoder_frame_width))
        x = _apply_blocks(self.latent_blocks, config.encoder_latent_blocks, x)
        return self.ends.out(self.ends.norm(x)).astype(jnp.float32)


class StftDecoder(nnx.Module):
    """Latents to magnitudes, and a waveform that has them."""

    def __init__(self, config: StftCodecConfig, latent_width: int, keys: PRNGKeyArray) -> None:
        c = config
        self.config = c
        outputs = (c.bins - c.first_bin) * (2 if c.phase else 1) + c.low_bins
        self.ends = Projections(
            (latent_width, c.decoder_latent_width),
            (c.decoder_latent_width, c.decoder_frame_width * c.downsample),
            (c.decoder_frame_width, c.channels * outputs),
            c.dtype,
            rngs=functional.make_rngs(keys[0]),
        )
        self.latent_blocks = functional.stack(
            ConvNeXtBlock,
            c.decoder_latent_width,
            c.latent_expansion,
            c.dtype,
            depth=c.decoder_latent_blocks,
            key=keys[1],
        )
        self.frame_blocks = functional.stack(
            ConvNeXtBlock,
            c.decoder_frame_width,
            c.frame_expansion,
            c.dtype,
            depth=c.decoder_frame_blocks,
            key=keys[2],
        )

    def spectrum(self, latents: Float[Array, "B L D"]) -> tuple[Magnitudes, Float[Array, "R F bins"] | None]:
        """Magnitudes of latents (B, L, D), float32, and phases (R, F, bins) in radians; None without `config.phase`."""
        config = self.config
        x = self.ends.entry(latents.astype(config.dtype))
        x = _apply_blocks(self.latent_blocks, config.decoder_latent_blocks, x)
        x = self.ends.middle(x).reshape(x.shape[0], -1, config.decoder_frame_width)
        x = _apply_blocks(self.frame_blocks, config.decoder_frame_blocks, x)
        out = channels.features_to_rows(self.ends.out(self.ends.norm(x)).astype(jnp.float32), config.channels)
        if config.phase:
            return Magnitudes(_size(out[..., : config.bins], config.n_fft), None), out[..., config.bins :]
        low = None
        if config.low_bins:
            out, low = jnp.split(out, [config.bins - config.first_bin], axis=-1)
            out = jnp.pad(out, ((0, 0), (0, 0), (config.first_bin, 0)))
            low = _size(low, config.low_window)
        return Magnitudes(_size(out, config.n_fft), low), None

    def __call__(self, latents: Float[Array, "B L D"], first: ArrayLike = 0) -> Float[Array, " B T *C"]:
        """Latents (B, L, D) to audio (B, L * hop), or (B, L * hop, C), float32.

        first: the index of the first latent; Griffin-Lim's initial phases depend on it.
        """
        config = self.config
        size, phase = self.spectrum(latents)
        if phase is None:
            rows = synthesise(config, size, first * config.downsample)
        else:
            rows = spectral.istft(size.short * jnp.exp(1j * phase), config.n_fft, config.frame_hop)
        return channels.from_rows(rows, config.channels)

    def reconstruct(
        self, latents: Float[Array, "B L D"], audio: Float[Array, " B T *C"]
    ) -> tuple[Float[Array, " B T *C"], list[MagnitudePair]]:
        """See `vae.reconstruct`; without `config.phase`, the phase is that of the original audio."""
        config = self.config
        original = spectra(config, channels.to_rows(audio))
        size, phase = self.spectrum(latents)
        if phase is None:
            rows = synthesise_with_phase(config, size, original)
        else:
            rows = spectral.istft(size.short * jnp.exp(1j * phase), config.n_fft, config.frame_hop)
        pairs = magnitude_pairs(config, size, magnitudes(original))
        return channels.from_rows(rows, config.channels), pairs


def _size(log_size: Array, n_fft: int) -> Array:
    """Magnitudes from the decoder's last projection."""
    return jnp.exp(jnp.minimum(log_size + QUIET, LOUDEST)) * spectral.window_gain(n_fft)


def halves(
    config: StftCodecConfig, outputs: int, latent_width: int, key: PRNGKeyArray
) -> tuple[StftEncoder, StftDecoder]:
    """Encoder and decoder, see `vae.CODECS`."""
    keys = jax.random.split(key, 6)
    return StftEncoder(config, outputs, keys[:3]), StftDecoder(config, latent_width, keys[3:])
