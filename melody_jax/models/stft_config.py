"""The shape of the codec that works on short-time spectra (`models/stft_codec.py`), and its sizes."""

import dataclasses
from dataclasses import dataclass

from melody_jax import spectral
from melody_jax.audio_format import CHANNELS, FULL_BAND_RATE, HIGHEST_RATE, LOWEST_RATE, SAMPLE_RATE
from melody_jax.errors import UserError
from melody_jax.models import low_band
from melody_jax.models.low_band import CROSSOVER, LowBand

KERNEL = 7
"""Taps of every depthwise convolution."""


def check_format(sample_rate: int, channels: int) -> None:
    """Raises `UserError` unless a codec can work at this rate with so many channels."""
    if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE or channels not in CHANNELS:
        raise UserError(
            f"sample_rate {sample_rate} and channels {channels}: the first must be from {LOWEST_RATE} to "
            f"{HIGHEST_RATE}, the second 1 or 2"
        )


@dataclass(frozen=True, kw_only=True)
class StftCodecConfig:
    """Shape of both halves."""

    sample_rate: int = SAMPLE_RATE
    """Samples per second."""
    channels: int = 1
    """Channels of the audio, 1 or 2."""
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
    low_hz: float = 0.0
    """Below this frequency the codec uses a second, longer window; 0: it has one window."""
    low_window: int = 4096
    """Samples in a frame of the second STFT, which has the same `frame_hop`."""
    low_steps: int = 16
    """Griffin-Lim steps for the band below `low_hz`. Each adds low_window samples to the decoder's reach."""
    dtype: str = "float32"
    """Compute type of the blocks; spectra are float32 always."""

    def __post_init__(self) -> None:
        check_format(self.sample_rate, self.channels)
        for name in ("frame_hop", "downsample"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: it must be at least 1")
        if self.n_fft < self.frame_hop * 2:
            raise UserError(
                f"n_fft {self.n_fft}: frames must overlap at least twice (frame_hop is {self.frame_hop})"
            )
        if self.low_hz:
            self._check_low_band()

    def _check_low_band(self) -> None:
        least = self.sample_rate / self.n_fft / CROSSOVER  # the crossover spans two bins of the short window
        most = self.sample_rate / 2 / (1 + CROSSOVER)
        if not least <= self.low_hz <= most:
            raise UserError(
                f"low_hz {self.low_hz:g}: with n_fft {self.n_fft} it must be from {least:.0f} to {most:.0f}, "
                "or 0 for a single window"
            )
        if self.low_window <= self.n_fft or self.low_window % 2:
            raise UserError(f"low_window {self.low_window}: it must be even and above n_fft ({self.n_fft})")
        if self.low_steps < 0:
            raise UserError(f"low_steps {self.low_steps}: it must be at least 0")
        if self.phase:
            raise UserError("low_hz needs phase=False: the phase of the second window is searched")

    @property
    def hop(self) -> int:
        """Samples per latent."""
        return self.frame_hop * self.downsample

    @property
    def bins(self) -> int:
        """Frequency bins of a frame."""
        return self.n_fft // 2 + 1

    @property
    def low_band(self) -> LowBand | None:
        """The second STFT; None: the codec has one."""
        if not self.low_hz:
            return None
        return LowBand(
            hz=self.low_hz,
            window=self.low_window,
            hop=self.frame_hop,
            steps=self.low_steps,
            sample_rate=self.sample_rate,
        )

    @property
    def low_bins(self) -> int:
        """Bins of the second STFT, N; 0 without one."""
        return self.low_band.bins if self.low_band else 0

    @property
    def first_bin(self) -> int:
        """First bin of the short window that the decoder writes: those below belong to the low band alone."""
        return (
            int((low_band.share(self.low_hz, self.n_fft, self.sample_rate) == 1).sum()) if self.low_hz else 0
        )

    @property
    def decoder_reach(self) -> int:
        """See `vae.decoder_reach`."""
        frames = self.decoder_frame_blocks * (KERNEL // 2)
        steps = 0 if self.phase else self.griffin_lim_steps
        frames += spectral.griffin_lim_reach(self.n_fft, self.frame_hop, steps)
        if self.low_band:
            frames += spectral.frame_reach(self.n_fft, self.low_window, self.frame_hop)
            frames += self.low_steps * spectral.frame_reach(self.low_window, self.low_window, self.frame_hop)
        return self.decoder_latent_blocks * (KERNEL // 2) - (-frames // self.downsample)

    @property
    def encoder_reach(self) -> int:
        """See `vae.encoder_reach`."""
        frames = self.encoder_frame_blocks * (KERNEL // 2)
        latents = self.encoder_latent_blocks * (KERNEL // 2)
        window = self.low_window if self.low_hz else self.n_fft
        return latents * self.hop + frames * self.frame_hop + (window - self.frame_hop + 1) // 2


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

TINY_TWO_WINDOWS = dataclasses.replace(TINY, low_hz=1_000.0, low_window=2048, low_steps=2)
"""`TINY` with a low band."""
MODERN = StftCodecConfig(
    sample_rate=FULL_BAND_RATE,
    channels=2,
    n_fft=2048,
    frame_hop=480,
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
"""48 kHz stereo, 50 Hz latents, nearly the paper's parameters: docs/evaluation/costs.md."""
SMALL = dataclasses.replace(
    MODERN,
    encoder_frame_width=192,
    encoder_latent_width=384,
    decoder_latent_width=512,
    decoder_latent_blocks=4,
    decoder_frame_width=384,
    decoder_frame_blocks=4,
)
"""`MODERN` at about half its widths."""
