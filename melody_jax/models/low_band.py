"""The low band of a two-resolution codec (`models/stft_codec.py`): bass, through a window of its own.

A window of 1,024 samples at 24 kHz has bins of 23 Hz, so neighbouring notes below 300 Hz share a bin and only the
phase tells them apart. The low band is therefore coded as magnitudes of a longer window (4,096 samples: 6 Hz). Its
phases are searched first, at a lower sample rate, where one step of the search costs little. Above, the short window
keeps the attacks sharp.

The bands cross over from 0.85 to 1.15 times `hz`, with weights that sum to one in every bin of the short window. Both
STFTs have the same frame rate.

B batch, T samples, F frames, N bins of the low band.
"""

from dataclasses import dataclass
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float

from melody_jax import spectral

CROSSOVER = 0.15
"""Half the width of the crossover as a fraction of its centre."""
ROOM = 1.1
"""Lowest Nyquist frequency of the phase search as a multiple of the band's upper end."""


@lru_cache(maxsize=8)
def share(hz: float, n_fft: int, sample_rate: int) -> Float[np.ndarray, " {n_fft}//2+1"]:
    """Weight of the low band in each bin of an STFT: 1 below the crossover around `hz`, 0 above, a cosine between."""
    frequencies = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    position = np.clip((frequencies / hz - 1) / (2 * CROSSOVER) + 0.5, 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * position)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class LowBand:
    """Shape of the low band's STFT, and its phase search."""

    hz: float
    """Centre of the crossover."""
    window: int
    """Samples in a frame."""
    hop: int
    """Samples between frames."""
    steps: int
    """Griffin-Lim steps."""
    sample_rate: int
    """Samples per second."""

    @property
    def bins(self) -> int:
        """Bins below the upper end of the crossover, N."""
        return int(np.ceil(self.hz * (1 + CROSSOVER) * self.window / self.sample_rate))

    @property
    def decimation(self) -> int:
        """Divisor of the sample rate in the phase search: the largest power of two that leaves frames in place."""
        factor = 1
        while (
            self.sample_rate / (4 * factor) >= ROOM * self.hz * (1 + CROSSOVER)
            and self.hop % (2 * factor) == self.window % (2 * factor) == 0
            and (self.window - self.hop) % (4 * factor) == 0
        ):
            factor *= 2
        return factor

    @property
    def reach(self) -> int:
        """Receptive field of `wave`: frames before or after its own that a hop depends on, at most."""
        return spectral.griffin_lim_reach(self.window, self.hop, self.steps)

    def spectrum(self, audio: Float[Array, "B T"]) -> Complex[Array, "B F N"]:
        """The band's bins of the STFT of audio (B, T): complex64 (B, F, N)."""
        return spectral.stft(audio, self.window, self.hop)[..., : self.bins]

    def wave_from_spectrum(self, spectrum: Complex[Array, "B F _"]) -> Float[Array, "B T"]:
        """The waveform (B, F * hop) of a spectrum whose other bins are zero."""
        missing = self.window // 2 + 1 - spectrum.shape[-1]
        padded = jnp.pad(spectrum, ((0, 0), (0, 0), (0, missing)))
        return spectral.istft(padded, self.window, self.hop)

    def wave(self, magnitudes: Float[Array, "B F N"], first: ArrayLike = 0) -> Float[Array, "B T"]:
        """A waveform (B, F * hop) with these magnitudes, by Griffin-Lim at the lower sample rate.

        first: index of the first frame, if these are part of a longer sequence.
        """
        factor = self.decimation
        n_fft = self.window // factor
        missing = n_fft // 2 + 1 - self.bins
        target = jnp.pad(magnitudes / factor, ((0, 0), (0, 0), (0, missing)))
        spectrum = spectral.griffin_lim_spectrum(target, n_fft, self.hop // factor, self.steps, first)
        return self.wave_from_spectrum(spectrum * factor)
