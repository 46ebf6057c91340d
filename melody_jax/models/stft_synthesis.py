"""Between audio and the magnitudes that the STFT codec writes (`models/stft_codec.py`), in one or two resolutions.

With a low band (`config.low_hz`) the waveform has two parts:

    low magnitudes (B, F, N) --Griffin-Lim at the lower rate--> low waveform (B, T) --short STFT--> fixed part
    short magnitudes (B, F, bins) --Griffin-Lim, with the fixed part--> waveform (B, T)

In each bin of the short window, the fixed part has the weight `low_band.share`, and the search the remaining weight.

B batch, T samples, F frames, N bins of the low band.
"""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float

from melody_jax import spectral
from melody_jax.models import low_band
from melody_jax.models.stft_config import StftCodecConfig

UNDAMPED = (1 - spectral.DAMPING**2) ** -0.5
"""Factor on magnitudes that cancels the damping of Griffin-Lim where phases fit (0.41 dB)."""


class Magnitudes(NamedTuple):
    """What the decoder writes, in the units of `spectral.stft`."""

    short: Float[Array, "B F bins"]
    """Of the short window; bins below `config.first_bin` are not used."""
    low: Float[Array, "B F N"] | None
    """Of the low band; None without one."""


class MagnitudePair(NamedTuple):
    """Magnitudes for the losses, over the root of the window's energy."""

    decoded: Float[Array, "B F bins"]
    """Written by the decoder."""
    original: Float[Array, "B F bins"]
    """Of the original audio, at the same window."""
    frequencies: Float[np.ndarray, " bins"]
    """Hz."""


class Spectra(NamedTuple):
    """The complex spectra of audio at the codec's windows."""

    short: Complex[Array, "B F bins"]
    low: Complex[Array, "B F N"] | None


def spectra(config: StftCodecConfig, audio: Float[Array, "B T"]) -> Spectra:
    """The complex spectra of audio (B, T) at the codec's windows."""
    short = spectral.stft(audio, config.n_fft, config.frame_hop)
    return Spectra(short, config.low_band.spectrum(audio) if config.low_band else None)


def magnitudes(spectra: Spectra) -> Magnitudes:
    """The magnitudes of spectra, with finite gradients."""
    low = None if spectra.low is None else spectral.magnitude(spectra.low)
    return Magnitudes(spectral.magnitude(spectra.short), low)


def synthesise(config: StftCodecConfig, size: Magnitudes, first: ArrayLike = 0) -> Float[Array, "B T"]:
    """A waveform (B, F * frame_hop) with nearly these magnitudes, its phase searched by Griffin-Lim.

    first: the index of the first frame; the initial phases depend on it. The level that damping takes is given back.
    """
    anchor = None
    if config.low_band:
        assert size.low is not None
        anchor = _anchor(config, config.low_band.wave(size.low * UNDAMPED, first))
    spectrum = spectral.griffin_lim_spectrum(
        size.short * UNDAMPED, config.n_fft, config.frame_hop, config.griffin_lim_steps, first, anchor
    )
    return spectral.istft(spectrum, config.n_fft, config.frame_hop)


def synthesise_with_phase(
    config: StftCodecConfig, size: Magnitudes, original: Spectra
) -> Float[Array, "B T"]:
    """A waveform (B, F * frame_hop) with nearly these magnitudes and the phase of the original audio's spectra."""
    unit = original.short / spectral.magnitude(original.short)
    spectrum = size.short * unit
    if config.low_band:
        assert size.low is not None
        assert original.low is not None
        low = size.low * (original.low / spectral.magnitude(original.low))
        spectrum = _anchor(config, config.low_band.wave_from_spectrum(low)).blend(spectrum)
    return spectral.istft(spectrum, config.n_fft, config.frame_hop)


def _anchor(config: StftCodecConfig, wave: Array) -> spectral.Anchor:
    """The low band's waveform as the fixed part of the short window's spectrum."""
    spectrum = spectral.stft(wave, config.n_fft, config.frame_hop)
    return spectral.Anchor(spectrum, low_band.share(config.low_hz, config.n_fft, config.sample_rate))


def magnitude_pairs(
    config: StftCodecConfig, decoded: Magnitudes, original: Magnitudes
) -> list[MagnitudePair]:
    """The magnitudes that the decoder writes, and the original's, for the losses."""
    pairs = []
    windows = ((config.n_fft, config.first_bin), (config.low_window, 0))
    for (n_fft, start), size, target in zip(windows, decoded, original, strict=True):
        if size is not None and target is not None:
            gain = spectral.window_gain(n_fft)
            frequencies = np.arange(start, size.shape[-1]) * config.sample_rate / n_fft
            pairs.append(MagnitudePair(size[..., start:] / gain, target[..., start:] / gain, frequencies))
    return pairs
