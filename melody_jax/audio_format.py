"""Sample rates and channels: the only place that names a rate as a number.

Audio is float32 in [-1, 1]: (T,) if it is mono, (T, C) if it has C channels.
"""

from dataclasses import dataclass

from melody_jax.errors import UserError

SAMPLE_RATE = 24_000
"""Samples per second by default, as in MeLoDy (arXiv 2305.15719, section 5.1)."""
KALDI_RATE = 16_000
"""What Kaldi's filter bank and AST hear."""
HTSAT_RATE = 48_000
"""What HTS-AT hears."""
LOWEST_RATE = 8_000
HIGHEST_RATE = 192_000
"""Sample rates that an autoencoder may have."""
HIGHEST_COMPOSED_RATE = 96_000
"""What FluidSynth, and so the composer, plays at most."""
CHANNELS = (1, 2)
"""Numbers of channels that audio may have here."""
FULL_BAND_RATE = 48_000
"""What the autoencoders `small` and `modern` hear, in stereo."""
TOKEN_RATE = 25
"""Semantic tokens per second."""
TOKEN_SAMPLES = SAMPLE_RATE // TOKEN_RATE
"""Samples per semantic token at `SAMPLE_RATE`."""


@dataclass(frozen=True, kw_only=True)
class AudioFormat:
    """Sample rate and channels of audio. The default is the paper's, which MuLan and the tokenizer hear."""

    sample_rate: int = SAMPLE_RATE
    """Samples per second."""
    channels: int = 1
    """1: (T,); 2: (T, 2)."""

    def __str__(self) -> str:
        return f"{self.sample_rate / 1000:g} kHz {'mono' if self.channels == 1 else 'stereo'}"

    @property
    def token_samples(self) -> int:
        """Samples per semantic token. Raises `UserError` for a rate of which that is no whole number."""
        if self.sample_rate % TOKEN_RATE:
            raise UserError(
                f"sample_rate {self.sample_rate}: it must be a multiple of {TOKEN_RATE}, such as 44100"
            )
        return self.sample_rate // TOKEN_RATE


DEFAULT_FORMAT = AudioFormat()


def fits_flac(sample_rate: int) -> bool:
    """Whether FLAC can state the rate: up to 65,535 Hz, or in tens of Hz (RFC 9639, frame headers)."""
    return sample_rate < 1 << 16 or sample_rate % 10 == 0


def check_fits_flac(sample_rate: int) -> None:
    """Raises `UserError` for a rate that FLAC, and so a shard, cannot hold."""
    if not fits_flac(sample_rate):
        raise UserError(f"sample_rate is {sample_rate}; above 65535 FLAC holds multiples of 10 alone")


def check_covers(place: object, stored: AudioFormat, needed: AudioFormat) -> None:
    """Raises `UserError` if audio stored in `place` has a lower rate or fewer channels than a network needs."""
    if stored.sample_rate < needed.sample_rate or stored.channels < needed.channels:
        raise UserError(
            f"{place}: holds audio in {stored}, and the network takes {needed}; prepare the recordings with "
            f"--sample-rate {needed.sample_rate} --channels {needed.channels}"
        )
