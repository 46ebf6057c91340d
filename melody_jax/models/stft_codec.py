"""The autoencoder's two halves that work on short-time spectra, in `mini` and `modern`; `models/vae.py` uses them.

    audio (B, T) --|STFT|--> 100 Hz frames --blocks--> x4 down --blocks--> mean, log variance (B, L, 2 D) at 25 Hz
    latents (B, L, D) --blocks--> x4 up --blocks--> magnitudes (B, F, bins) --Griffin-Lim--> audio (B, T)

The latents carry no phase. At 25 Hz phase looks like white noise: a network small enough for a laptop cannot predict it
from semantic tokens, and latents full of it leave the diffusion nothing to learn (docs/mini.md has the figures). A
larger decoder may output a phase next to the magnitudes, `phase` (an inverse-STFT decoder as in Vocos, arXiv
2306.00814): it learns a plausible one from its discriminators, and decodes in one pass.

B batch, T samples (a multiple of `config.hop`), F = T / frame_hop frames, L = T / hop latents, D latent channels.
Norms act on channels only and there is no attention: every magnitude depends on a finite range of latents, the same
everywhere (`decoder_reach`, `encoder_reach`).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from melody_jax import spectral
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.layers import Linear, RMSNorm
from melody_jax.models.platform import depthwise_conv
from melody_jax.roles import CONV, NORM

Widths = tuple[int, int]
"""Input and output channels of a projection."""

KERNEL = 7
"""Taps of every depthwise convolution."""
BLOCK_GAIN = 0.3
"""Initial gain of a block's residual branch."""
QUIET = -4.0
"""Log magnitude of an untrained decoder's output."""
LOUDEST = 6.0
"""Log magnitude that no full-scale sound exceeds."""
LOG_FLOOR = 1e-3
"""Added to magnitudes before the logarithm: 60 dB below full-scale noise."""


@dataclass(frozen=True, kw_only=True)
class StftCodecConfig:
    """Shape of both halves. Defaults are `mini`."""

    n_fft: int = 1024
    """Samples in an STFT frame, of the encoder's input and of the decoder's output."""
    frame_hop: int = 240
    """Samples between frames (240 = 100 Hz at 24 kHz)."""
    downsample: int = 4
    """Frames per latent (4 = 25 Hz latents)."""
    encoder_frame_width: int = 256
    """Channels of the encoder at frame rate."""
    encoder_frame_blocks: int = 2
    """Blocks of the encoder at frame rate."""
    encoder_latent_width: int = 384
    """Channels of the encoder at latent rate."""
    encoder_latent_blocks: int = 2
    """Blocks of the encoder at latent rate."""
    decoder_latent_width: int = 384
    """Channels of the decoder at latent rate."""
    decoder_latent_blocks: int = 4
    """Blocks of the decoder at latent rate."""
    decoder_frame_width: int = 256
    """Channels of the decoder at frame rate."""
    decoder_frame_blocks: int = 2
    """Blocks of the decoder at frame rate."""
    latent_expansion: int = 3
    """Hidden channels of a block as a multiple of its channels, at latent rate."""
    frame_expansion: int = 2
    """Hidden channels of a block as a multiple of its channels, at frame rate."""
    phase: bool = False
    """The decoder outputs the phase too; False: it is estimated by Griffin-Lim."""
    griffin_lim_steps: int = 8
    """Griffin-Lim steps in decoding; 0: random phase. Unused with `phase`."""
    dtype: str = "float32"
    """Compute type of the blocks; spectra are float32 always."""

    def __post_init__(self) -> None:
        if self.n_fft < self.frame_hop * 2:
            raise UserError(
                f"n_fft {self.n_fft}: frames must overlap at least twice (frame_hop is {self.frame_hop})"
            )

    @property
    def hop(self) -> int:
        """Samples per latent."""
        return self.frame_hop * self.downsample

    @property
    def bins(self) -> int:
        """Frequency bins of a frame."""
        return self.n_fft // 2 + 1

    @property
    def decoder_reach(self) -> int:
        """See `vae.decoder_reach`."""
        frames = self.decoder_frame_blocks * (KERNEL // 2)
        steps = 0 if self.phase else self.griffin_lim_steps
        frames += spectral.griffin_lim_reach(self.n_fft, self.frame_hop, steps)
        return self.decoder_latent_blocks * (KERNEL // 2) - (-frames // self.downsample)

    @property
    def encoder_reach(self) -> int:
        """See `vae.encoder_reach`."""
        frames = self.encoder_frame_blocks * (KERNEL // 2)
        latents = self.encoder_latent_blocks * (KERNEL // 2)
        return latents * self.hop + frames * self.frame_hop + (self.n_fft - self.frame_hop + 1) // 2


TINY = StftCodecConfig(
    griffin_lim_steps=2,
    encoder_frame_width=16,
    encoder_frame_blocks=1,
    encoder_latent_width=24,
    encoder_latent_blocks=1,
    decoder_latent_width=24,
    decoder_latent_blocks=1,
    decoder_frame_width=16,
    decoder_frame_blocks=1,
)


MODERN = StftCodecConfig(
    downsample=2,
    encoder_frame_width=384,
    encoder_latent_width=512,
    encoder_latent_blocks=4,
    decoder_latent_width=1024,
    decoder_latent_blocks=6,
    decoder_frame_width=640,
    decoder_frame_blocks=6,
    phase=True,
)
"""50 Hz latents, and a decoder with as many parameters as the paper's, at a hundredth of its operations."""


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


def spectral_features(config: StftCodecConfig, audio: Float[Array, "B T"]) -> Float[Array, "B F bins"]:
    """The encoder's input: (B, T) -> (B, F, bins), log magnitudes scaled to about unit size."""
    size = spectral.magnitude(spectral.stft(audio, config.n_fft, config.frame_hop))
    return 0.4 * jnp.log(size / spectral.window_gain(config.n_fft) + LOG_FLOOR) + 1.6


class StftEncoder(nnx.Module):
    """Audio to mean and log variance of the latents."""

    def __init__(self, config: StftCodecConfig, latent_width: int, keys: PRNGKeyArray) -> None:
        c = config
        self.config = c
        self.ends = Projections(
            (c.bins, c.encoder_frame_width),
            (c.encoder_frame_width * c.downsample, c.encoder_latent_width),
            (c.encoder_latent_width, 2 * latent_width),
            c.dtype,
            rngs=nnx.Rngs(keys[0]),
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

    def __call__(self, audio: Float[Array, "B T"]) -> Float[Array, "B L _"]:
        """Audio (B, T), T a multiple of `config.hop`, to float32 (B, L, 2 D)."""
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
        self.ends = Projections(
            (latent_width, c.decoder_latent_width),
            (c.decoder_latent_width, c.decoder_frame_width * c.downsample),
            (c.decoder_frame_width, c.bins * (2 if c.phase else 1)),
            c.dtype,
            rngs=nnx.Rngs(keys[0]),
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

    def spectrum(
        self, latents: Float[Array, "B L D"]
    ) -> tuple[Float[Array, "B F bins"], Float[Array, "B F bins"] | None]:
        """Magnitudes of latents (B, L, D), float32 (B, F, bins) in the units of `spectral.stft`, and phases in radians.

        Phases are None without `config.phase`.
        """
        config = self.config
        x = self.ends.entry(latents.astype(config.dtype))
        x = _apply_blocks(self.latent_blocks, config.decoder_latent_blocks, x)
        x = self.ends.middle(x).reshape(x.shape[0], -1, config.decoder_frame_width)
        x = _apply_blocks(self.frame_blocks, config.decoder_frame_blocks, x)
        out = self.ends.out(self.ends.norm(x)).astype(jnp.float32)
        log_size = out[..., : config.bins] + QUIET
        size = jnp.exp(jnp.minimum(log_size, LOUDEST)) * spectral.window_gain(config.n_fft)
        return size, out[..., config.bins :] if config.phase else None

    def __call__(self, latents: Float[Array, "B L D"], first: ArrayLike = 0) -> Float[Array, "B T"]:
        """Latents (B, L, D) to audio (B, L * hop), float32.

        first: the index of the first latent; Griffin-Lim's initial phases depend on it.
        """
        config = self.config
        size, phase = self.spectrum(latents)
        if phase is not None:
            return spectral.istft(size * jnp.exp(1j * phase), config.n_fft, config.frame_hop)
        frame = first * config.downsample
        return spectral.griffin_lim(
            size, config.n_fft, config.frame_hop, config.griffin_lim_steps, first=frame
        )

    def reconstruct(self, latents: Float[Array, "B L D"], audio: Float[Array, "B T"]) -> Float[Array, "B T"]:
        """Audio for the losses: without `config.phase`, the phase is that of the original audio (B, L * hop)."""
        config = self.config
        if config.phase:
            return self(latents)
        original = spectral.stft(audio, config.n_fft, config.frame_hop)
        size, _ = self.spectrum(latents)
        spectrum = size * (original / spectral.magnitude(original))
        return spectral.istft(spectrum, config.n_fft, config.frame_hop)


def halves(config: StftCodecConfig, latent_width: int, key: PRNGKeyArray) -> tuple[StftEncoder, StftDecoder]:
    """Encoder and decoder, see `vae.CODECS`."""
    keys = jax.random.split(key, 6)
    return StftEncoder(config, latent_width, keys[:3]), StftDecoder(config, latent_width, keys[3:])
