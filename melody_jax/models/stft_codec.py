"""The autoencoder's two halves that work on spectra, in `mini` and `modern` (`models/vae.py` is what uses them).

    audio (B, T) --|STFT|--> 100 Hz frames --blocks--> x4 down --blocks--> mean, log variance (B, L, 2 D) at 25 Hz
    latents (B, L, D) --blocks--> x4 up --blocks--> magnitudes (B, F, bins) --Griffin-Lim--> audio (B, T)

The latents carry no phase. At 25 Hz phase looks like white noise: a network small enough for a laptop cannot foretell
it from semantic tokens, and latents full of it leave the diffusion nothing to learn (docs/mini.md has the figures).
A larger decoder may write a phase of its own beside the magnitudes, `phase` (an inverse-STFT decoder as Vocos has it,
arXiv 2306.00814): it learns a likely one from its discriminators, and decodes in one pass.

B batch, T samples (a multiple of `config.hop`), F = T / frame_hop frames, L = T / hop latents, D latent channels.
Norms act on channels only and there is no attention: every magnitude sees a finite stretch of latents, the same
everywhere (`decoder_reach`, `encoder_reach`).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from melody_jax import spectral
from melody_jax.errors import UserError
from melody_jax.models.functional import Params, bind, init_stack, unstack
from melody_jax.models.functional import init as init_module
from melody_jax.models.layers import RMSNorm
from melody_jax.models.platform import depthwise_conv

Widths = tuple[int, int]  # of a projection: channels in, channels out

KERNEL = 7  # taps of every depthwise convolution
BLOCK_GAIN = 0.3  # initial weight of a block beside its skip
QUIET = -4.0  # log magnitude of a fresh decoder
LOUDEST = 6.0  # log magnitude that no sound of full scale exceeds
LOG_FLOOR = 1e-3  # 60 dB below noise of full scale


@dataclass(frozen=True, kw_only=True)
class MagnitudesConfig:
    """Shape of both halves. Defaults are `mini`."""

    n_fft: int = 1024
    """Samples in an STFT frame, of the encoder's input and of the decoder's output."""
    frame_hop: int = 240
    """Samples between frames (240 = 100 Hz at 24 kHz)."""
    downsample: int = 4
    """Frames to a latent (4 = 25 Hz latents)."""
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
    """Hidden channels of a block per channel, at latent rate."""
    frame_expansion: int = 2
    """Hidden channels of a block per channel, at frame rate."""
    phase: bool = False
    """The decoder writes the phase too; else `decode` looks for one."""
    griffin_lim_steps: int = 8
    """Steps by which `decode` finds a phase; 0 leaves a random one. Unused with `phase`."""
    dtype: str = "float32"
    """Compute type of the blocks; spectra are float32 always."""

    def __post_init__(self) -> None:
        if self.n_fft < self.frame_hop * 2:
            raise UserError(
                f"n_fft {self.n_fft}: frames must overlap at least twice (frame_hop is {self.frame_hop})"
            )

    @property
    def hop(self) -> int:
        """Samples to a latent."""
        return self.frame_hop * self.downsample

    @property
    def bins(self) -> int:
        """Frequencies of a frame."""
        return self.n_fft // 2 + 1


TINY = MagnitudesConfig(
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


MODERN = MagnitudesConfig(
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
"""50 Hz latents, and a decoder of as many parameters as the paper's, at a hundredth of its operations."""


class Block(nnx.Module):
    """ConvNeXt block over time: depthwise convolution, channel norm, two-layer perceptron, scale, skip."""

    def __init__(self, width: int, expansion: int, *, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (KERNEL, width)) * KERNEL**-0.5)
        self.norm = RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, width * expansion, rngs=rngs)
        self.down = nnx.Linear(width * expansion, width, rngs=rngs)
        self.scale = nnx.Param(jnp.full(width, BLOCK_GAIN))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, width) -> the same."""
        h = self.norm(depthwise_conv(x, self.kernel[...]))
        return x + self.down(jax.nn.gelu(self.up(h))) * self.scale[...].astype(x.dtype)


class Ends(nnx.Module):
    """What stands around the blocks of one half: a projection in, one between the two rates, a normed one out."""

    def __init__(self, entry: Widths, middle: Widths, out: Widths, *, rngs: nnx.Rngs) -> None:
        self.entry = nnx.Linear(*entry, rngs=rngs)
        self.middle = nnx.Linear(*middle, rngs=rngs)
        self.norm = RMSNorm(out[0], rngs=rngs)
        self.out = nnx.Linear(*out, rngs=rngs)


def _encoder_ends(c: MagnitudesConfig, latent_width: int) -> tuple[Widths, Widths, Widths]:
    wide = c.encoder_frame_width * c.downsample
    return (
        (c.bins, c.encoder_frame_width),
        (wide, c.encoder_latent_width),
        (c.encoder_latent_width, 2 * latent_width),
    )


def _decoder_ends(c: MagnitudesConfig, latent_width: int) -> tuple[Widths, Widths, Widths]:
    wide = c.decoder_frame_width * c.downsample
    out = c.bins * (2 if c.phase else 1)
    return (
        (latent_width, c.decoder_latent_width),
        (c.decoder_latent_width, wide),
        (c.decoder_frame_width, out),
    )


def init(config: MagnitudesConfig, latent_width: int, key: jax.Array) -> Params:
    """Fresh parameters of both halves: {"encoder", "decoder"}."""
    keys = jax.random.split(key, 6)
    c = config

    def stack(width: int, expansion: int, depth: int, key: jax.Array) -> Params:
        return init_stack(Block, width, expansion, key=key, depth=depth)

    return {
        "encoder": {
            "ends": init_module(Ends, *_encoder_ends(c, latent_width), key=keys[0]),
            "frame_blocks": stack(c.encoder_frame_width, c.frame_expansion, c.encoder_frame_blocks, keys[1]),
            "latent_blocks": stack(
                c.encoder_latent_width, c.latent_expansion, c.encoder_latent_blocks, keys[2]
            ),
        },
        "decoder": {
            "ends": init_module(Ends, *_decoder_ends(c, latent_width), key=keys[3]),
            "latent_blocks": stack(
                c.decoder_latent_width, c.latent_expansion, c.decoder_latent_blocks, keys[4]
            ),
            "frame_blocks": stack(c.decoder_frame_width, c.frame_expansion, c.decoder_frame_blocks, keys[5]),
        },
    }


def _run(stacked: Params, width: int, expansion: int, x: jax.Array) -> jax.Array:
    """Applies the stacked blocks, unrolled: there are few, and on XLA:CPU a scan over them takes a quarter longer."""
    for params in unstack(stacked, len(stacked["scale"])):
        x = bind(Block, width, expansion, params=params)(x)
    return x


def _cast(params: Params, dtype: str) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def spectral_features(config: MagnitudesConfig, audio: jax.Array) -> jax.Array:
    """The encoder's view of audio: (B, T) -> (B, F, bins), log magnitudes brought to about unit size."""
    size = spectral.magnitude(spectral.stft(audio, config.n_fft, config.frame_hop)) / spectral.window_gain(
        config.n_fft
    )
    return 0.4 * jnp.log(size + LOG_FLOOR) + 1.6


def encode(params: Params, config: MagnitudesConfig, latent_width: int, audio: jax.Array) -> jax.Array:
    """Mean and log variance side by side, float32 (B, L, 2 D), of audio (B, T), T a multiple of `config.hop`."""
    p = _cast(params["encoder"], config.dtype)
    ends = bind(Ends, *_encoder_ends(config, latent_width), params=p["ends"])
    x = ends.entry(spectral_features(config, audio).astype(config.dtype))
    x = _run(p["frame_blocks"], config.encoder_frame_width, config.frame_expansion, x)
    x = ends.middle(x.reshape(x.shape[0], -1, config.downsample * config.encoder_frame_width))
    x = _run(p["latent_blocks"], config.encoder_latent_width, config.latent_expansion, x)
    return ends.out(ends.norm(x)).astype(jnp.float32)


def spectrum(
    params: Params, config: MagnitudesConfig, latents: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Magnitudes of latents (B, L, D), float32 (B, F, bins) in the units of `spectral.stft`, and phases in radians.

    Phases are None where the decoder writes none.
    """
    p = _cast(params["decoder"], config.dtype)
    ends = bind(Ends, *_decoder_ends(config, latents.shape[-1]), params=p["ends"])
    x = ends.entry(latents.astype(config.dtype))
    x = _run(p["latent_blocks"], config.decoder_latent_width, config.latent_expansion, x)
    x = ends.middle(x).reshape(x.shape[0], -1, config.decoder_frame_width)
    x = _run(p["frame_blocks"], config.decoder_frame_width, config.frame_expansion, x)
    out = ends.out(ends.norm(x)).astype(jnp.float32)
    log_size = out[..., : config.bins] + QUIET
    size = jnp.exp(jnp.minimum(log_size, LOUDEST)) * spectral.window_gain(config.n_fft)
    return size, out[..., config.bins :] if config.phase else None


def decode(
    params: Params, config: MagnitudesConfig, latents: jax.Array, first: jax.typing.ArrayLike = 0
) -> jax.Array:
    """Latents (B, L, D) to audio (B, L * hop), float32: `spectrum`, and a phase that fits it where it has none.

    first: the number of the first latent, on which the phases depend that the search begins with.
    """
    size, phase = spectrum(params, config, latents)
    if phase is not None:
        return spectral.istft(size * jnp.exp(1j * phase), config.n_fft, config.frame_hop)
    frame = first * config.downsample
    return spectral.griffin_lim(size, config.n_fft, config.frame_hop, config.griffin_lim_steps, first=frame)


def reconstruct(params: Params, config: MagnitudesConfig, latents: jax.Array, audio: jax.Array) -> jax.Array:
    """`decode` as training hears it: a phase that would be looked for is that of the original audio (B, L * hop)."""
    if config.phase:
        return decode(params, config, latents)
    original = spectral.stft(audio, config.n_fft, config.frame_hop)
    size, _ = spectrum(params, config, latents)
    return spectral.istft(size * (original / spectral.magnitude(original)), config.n_fft, config.frame_hop)


def decoder_reach(config: MagnitudesConfig) -> int:
    """How many latents on either side of its own a sample can depend on, at most."""
    frames = config.decoder_frame_blocks * (KERNEL // 2)
    steps = 0 if config.phase else config.griffin_lim_steps
    frames += spectral.griffin_lim_reach(config.n_fft, config.frame_hop, steps)
    return config.decoder_latent_blocks * (KERNEL // 2) - (-frames // config.downsample)


def encoder_reach(config: MagnitudesConfig) -> int:
    """How many samples on either side of its own `hop` a latent can depend on, at most."""
    frames = config.encoder_frame_blocks * (KERNEL // 2)
    latents = config.encoder_latent_blocks * (KERNEL // 2)
    return latents * config.hop + frames * config.frame_hop + (config.n_fft - config.frame_hop + 1) // 2
