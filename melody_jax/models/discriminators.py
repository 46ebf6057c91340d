"""Discriminators of real against decoded audio, for the VAE's adversarial losses (MeLoDy, arXiv 2305.15719,
section 4.2): multi-period (HiFi-GAN, arXiv 2010.05646) and multi-resolution spectrogram (UnivNet, arXiv 2106.07889).

Every discriminator maps audio (B, T) or (B, T, C) to its logits and the features of its hidden layers. Convolutions are
patches times a matrix: XLA:CPU has fast convolutions only in a program's entry computation, and `lax.conv` is ten times
slower in the branch of a `lax.cond`, which is where training runs the discriminators.
"""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from melody_jax import spectral
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.channels import to_rows
from melody_jax.models.functional import Params, make_rngs
from melody_jax.models.products import product
from melody_jax.roles import BIAS, CONV, ROW, Role, Roles

PERIOD_KERNEL = 5  # taps of the multi-period convolutions
PERIOD_STRIDE = 3  # stride of all of them but the last
LEAK = 0.1  # slope of the leaky rectifier below zero

Discrimination = tuple[Float[Array, "_ ..."], list[Float[Array, "_ ..."]]]
"""(logits, features): one logit per position of the last layer, and the outputs of the hidden layers."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Shapes of the discriminators. Defaults are `mini`, an eighth of HiFi-GAN's widths."""

    channels: int = 1
    """Channels of the audio; every discriminator sees all of them."""
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    """Periods of the multi-period discriminators, samples."""
    period_widths: tuple[int, ...] = (8, 32, 64, 128, 128)
    """Channels of the multi-period layers; all but the last have stride 3."""
    resolutions: tuple[tuple[int, int, int], ...] = ((2048, 480, 2048), (1024, 240, 1024), (512, 120, 512))
    """(n_fft, hop, window) in samples of the spectrogram discriminators."""
    resolution_layers: tuple[tuple[int, int, int], ...] = ((16, 16, 8), (32, 3, 2), (32, 3, 2))
    """(channels, taps, stride) along frequency of the spectrogram layers; along time they have 3 taps and stride 1."""
    bands: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    """Ranges of the spectrum, as fractions of its bins, with separate layers up to the last."""
    complex_spectra: bool = False
    """Input is real and imaginary parts instead of magnitudes, as in descript-audio-codec."""
    log_magnitudes: bool = True
    """Input is log magnitudes: the quiet upper octaves, where a decoder blurs first, weigh as much as the loud ones."""

    def __post_init__(self) -> None:
        if len(self.period_widths) < 2 or len(self.resolution_layers) < 2:
            raise UserError("discriminator layers: at least two of either kind are needed")
        for low, high in self.bands:
            if not 0 <= low < high <= 1:
                raise UserError(f"band {(low, high)}: it must rise within 0 to 1")


TINY = DiscriminatorConfig(
    periods=(2, 3),
    period_widths=(4, 8, 8),
    resolutions=((512, 120, 512),),
    resolution_layers=((4, 16, 8), (8, 3, 2)),
)
"""For tests."""
PAPER = DiscriminatorConfig(
    period_widths=(32, 128, 512, 1024, 1024),
    resolutions=((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)),
    resolution_layers=((32, 9, 1), (32, 9, 2), (32, 9, 2), (32, 9, 2), (32, 3, 1)),
    log_magnitudes=False,
)
"""HiFi-GAN's multi-period and UnivNet's spectrogram discriminators."""


def _patches(x: Array, width: int, stride: int) -> Array:
    """Patches of a 'same' convolution over the last axis but one: (N, T, C) -> (N, ceil(T / stride), width * C)."""
    batch, length, channels = x.shape
    count = -(-length // stride)
    strides_per_patch = -(-width // stride)
    left = width // 2
    right = (count + strides_per_patch - 1) * stride - left - length
    grid = jnp.pad(x, ((0, 0), (left, right), (0, 0))).reshape(batch, -1, stride * channels)
    shifted = [grid[:, i : i + count] for i in range(strides_per_patch)]
    return jnp.concatenate(shifted, axis=-1)[..., : width * channels]


def _conv1d(x: Array, kernel: Array | np.ndarray, stride: int) -> Array:
    """'Same' convolution: x (N, T, C), kernel (W, C, C') -> (N, ceil(T / stride), C')."""
    return product(_patches(x, kernel.shape[0], stride), kernel.reshape(-1, kernel.shape[-1]))


def _conv2d(x: Array, kernel: Array | np.ndarray, stride: int) -> Array:
    """'Same' convolution over axes 1 and 2, strided along 2: x (N, F, M, C), kernel (3, W, C, C')."""
    batch, frames, bands, channels = x.shape
    rows = _patches(x.reshape(batch * frames, bands, channels), kernel.shape[1], stride)
    rows = jnp.pad(rows.reshape(batch, frames, *rows.shape[1:]), ((0, 0), (1, 1), (0, 0), (0, 0)))
    stacked = jnp.concatenate([rows[:, i : i + frames] for i in range(3)], axis=-1)
    return product(stacked, kernel.reshape(-1, kernel.shape[-1]))


class ConvWeights(nnx.Module):
    """Kernel and bias of one convolution."""

    def __init__(self, shape: tuple[int, ...], role: Role = CONV, *, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape), role=role)
        self.bias = nnx.Param(jnp.zeros(shape[-1]), role=BIAS)


class PeriodDiscriminator(nnx.Module):
    """Convolutions over every `period`-th sample: (B, T) or (B, T, C) -> logits (B * period, T') and features."""

    def __init__(self, period: int, channels: int, widths: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        self.period = period
        pairs = zip((channels, *widths[:-1]), widths, strict=True)
        self.layers = nnx.List([ConvWeights((PERIOD_KERNEL, *pair), rngs=rngs) for pair in pairs])
        self.out = ConvWeights((3, widths[-1], 1), ROW, rngs=rngs)

    def __call__(self, audio: Float[Array, " B T *C"]) -> Discrimination:
        """Logits and features of audio (B, T) or (B, T, C)."""
        batch, length = audio.shape[:2]
        x = audio.reshape(batch, length, -1)
        x = jnp.pad(x, ((0, 0), (0, -length % self.period), (0, 0)), mode="reflect")
        columns = x.reshape(batch, -1, self.period, x.shape[-1]).swapaxes(1, 2)
        x = columns.reshape(batch * self.period, -1, x.shape[-1])
        features = []
        for i, layer in enumerate(self.layers):
            stride = PERIOD_STRIDE if i + 1 < len(self.layers) else 1
            x = jax.nn.leaky_relu(_conv1d(x, layer.kernel[...], stride) + layer.bias[...], LEAK)
            features.append(x)
        return (_conv1d(x, self.out.kernel[...], 1) + self.out.bias[...])[..., 0], features


class SpectrogramDiscriminator(nnx.Module):
    """Convolutions over a spectrogram: (B, T) or (B, T, C) -> logits (B, frames, bins') and features, band by band."""

    def __init__(
        self, config: DiscriminatorConfig, resolution: tuple[int, int, int], *, rngs: nnx.Rngs
    ) -> None:
        self.config = config
        self.resolution = resolution
        inputs = config.channels * (2 if config.complex_spectra else 1)
        channels = [inputs, *(layer[0] for layer in config.resolution_layers)]
        taps = [layer[1] for layer in config.resolution_layers]
        self.bands = nnx.List(
            [
                nnx.List(
                    [
                        ConvWeights((3, w, *pair), rngs=rngs)
                        for w, pair in zip(taps, pairwise(channels), strict=True)
                    ]
                )
                for _ in config.bands
            ]
        )
        self.out = ConvWeights((3, 3, channels[-1], 1), ROW, rngs=rngs)

    def spectrogram(self, audio: Float[Array, " B T *C"]) -> Float[Array, "B frames bins channels"]:
        """The network's input (B, frames, bins, C or 2 C) from audio (B, T) or (B, T, C)."""
        n_fft, hop, window = self.resolution
        rows = spectral.stft(to_rows(audio), n_fft, hop, window)
        spectrum = jnp.moveaxis(rows.reshape(len(audio), -1, *rows.shape[1:]), 1, -1)
        if self.config.complex_spectra:
            return jnp.concatenate([spectrum.real, spectrum.imag], axis=-1)
        size = spectral.magnitude(spectrum)
        return jnp.log(size * n_fft**-0.5 + 1e-3) / 3 + 1 if self.config.log_magnitudes else size

    def __call__(self, audio: Float[Array, " B T *C"]) -> Discrimination:
        """Logits and features of audio (B, T) or (B, T, C)."""
        return self.discriminate(self.spectrogram(audio))

    def discriminate(self, image: Float[Array, "B frames bins channels"]) -> Discrimination:
        """Logits and features of a spectrogram (B, frames, bins, channels)."""
        bins = image.shape[2]
        bands = []
        features = []
        for (low, high), layers in zip(self.config.bands, self.bands, strict=True):
            x = image[:, :, int(low * bins) : int(high * bins)]
            for layer, (_, _, stride) in zip(layers, self.config.resolution_layers, strict=True):
                x = jax.nn.leaky_relu(_conv2d(x, layer.kernel[...], stride) + layer.bias[...], LEAK)
                features.append(x)
            bands.append(x)
        joined = jnp.concatenate(bands, axis=2)
        return (_conv2d(joined, self.out.kernel[...], 1) + self.out.bias[...])[..., 0], features


class Discriminators(nnx.Module):
    """All discriminators, named "period_2", ..., "resolution_1024", ..."""

    def __init__(self, config: DiscriminatorConfig, *, rngs: nnx.Rngs) -> None:
        keys = iter(functional.split_key(rngs, len(config.periods) + len(config.resolutions)))
        self.names = (
            *(f"period_{period}" for period in config.periods),
            *(f"resolution_{resolution[0]}" for resolution in config.resolutions),
        )
        for period in config.periods:
            network = PeriodDiscriminator(
                period, config.channels, config.period_widths, rngs=make_rngs(next(keys))
            )
            setattr(self, f"period_{period}", network)
        for resolution in config.resolutions:
            network = SpectrogramDiscriminator(config, resolution, rngs=make_rngs(next(keys)))
            setattr(self, f"resolution_{resolution[0]}", network)

    def __call__(self, audio: Float[Array, " B T *C"]) -> list[Discrimination]:
        """Logits and features of each discriminator on audio (B, T) or (B, T, C)."""
        return [getattr(self, name)(audio) for name in self.names]


def init(config: DiscriminatorConfig, key: PRNGKeyArray) -> Params:
    """Fresh parameters: {"period_2": ..., "resolution_1024": ...}."""
    return functional.init(Discriminators, config, key=key)


def roles(config: DiscriminatorConfig) -> Roles:
    """The role of every parameter, with the structure of what `init` returns."""
    return functional.roles(Discriminators, config)


def discriminate(
    params: Params, config: DiscriminatorConfig, audio: Float[Array, " B T *C"]
) -> list[Discrimination]:
    """Logits and features of each discriminator on audio (B, T) or (B, T, C)."""
    return functional.bind(Discriminators, config, params=params)(audio)
