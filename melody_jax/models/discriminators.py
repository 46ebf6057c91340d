"""Judges of real against decoded audio for the VAE's adversarial half (paper section 2.5): multi-period (HiFi-GAN,
arXiv 2010.05646) and multi-resolution spectrogram (UnivNet, arXiv 2106.07889) discriminators, in any width.

Audio is (B, T). Every discriminator returns its logits and the list of its hidden layers' outputs. Convolutions are
frames times a matrix: XLA:CPU has fast convolutions in a program's entry computation only, and in the branch of a
`lax.cond`, where training keeps the discriminators, `lax.conv` is ten times slower.
"""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from melody_jax import roles, spectral
from melody_jax.errors import UserError
from melody_jax.models.functional import Params, bind
from melody_jax.models.functional import init as init_module
from melody_jax.roles import Role

PERIOD_KERNEL = 5  # taps of the multi-period convolutions
PERIOD_STRIDE = 3  # stride of all of them but the last
LEAK = 0.1  # slope of the leaky rectifier below zero

Judgement = tuple[jax.Array, list[jax.Array]]


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Shapes of the discriminators. Defaults are `mini`, an eighth of HiFi-GAN's widths."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    """Samples between neighbours in the columns that the multi-period discriminators see."""
    period_widths: tuple[int, ...] = (8, 32, 64, 128, 128)
    """Channels of the multi-period layers; each but the last shortens time by 3."""
    resolutions: tuple[tuple[int, int, int], ...] = ((2048, 480, 2048), (1024, 240, 1024), (512, 120, 512))
    """(n_fft, hop, window) in samples of the spectrogram discriminators."""
    resolution_layers: tuple[tuple[int, int, int], ...] = ((16, 16, 8), (32, 3, 2), (32, 3, 2))
    """(channels, taps, stride) along frequency of the spectrogram layers; along time they have 3 taps and stride 1."""
    bands: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    """Ranges of the spectrum, as shares of its bins, that have layers of their own up to the last."""
    complex_spectra: bool = False
    """Shows real and imaginary parts instead of magnitudes, as descript-audio-codec does."""
    log_magnitudes: bool = True
    """Shows logarithms of magnitudes: the quiet upper octaves, where a decoder blurs first, as visible as the loud."""

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


def _patches(x: jax.Array, width: int, stride: int) -> jax.Array:
    """What a 'same' convolution over the last axis but one sees: (N, T, C) -> (N, ceil(T / stride), width * C)."""
    batch, length, channels = x.shape
    count, pieces = -(-length // stride), -(-width // stride)
    left = width // 2
    right = (count + pieces - 1) * stride - left - length
    grid = jnp.pad(x, ((0, 0), (left, right), (0, 0))).reshape(batch, -1, stride * channels)
    return jnp.concatenate([grid[:, i : i + count] for i in range(pieces)], axis=-1)[..., : width * channels]


def _conv1d(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """'Same' convolution: x (N, T, C), kernel (W, C, C') -> (N, ceil(T / stride), C')."""
    return _patches(x, kernel.shape[0], stride) @ kernel.reshape(-1, kernel.shape[-1])


def _conv2d(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """'Same' convolution over axes 1 and 2, strided along 2: x (N, F, M, C), kernel (3, W, C, C')."""
    batch, frames, bands, channels = x.shape
    rows = _patches(x.reshape(batch * frames, bands, channels), kernel.shape[1], stride)
    rows = jnp.pad(rows.reshape(batch, frames, *rows.shape[1:]), ((0, 0), (1, 1), (0, 0), (0, 0)))
    stacked = jnp.concatenate([rows[:, i : i + frames] for i in range(3)], axis=-1)
    return stacked @ kernel.reshape(-1, kernel.shape[-1])


class Layer(nnx.Module):
    """Kernel and bias of one convolution."""

    def __init__(self, shape: tuple[int, ...], role: Role = roles.CONV, *, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape), role=role)
        self.bias = nnx.Param(jnp.zeros(shape[-1]), role=roles.BIAS)


class PeriodDiscriminator(nnx.Module):
    """Looks at every `period`-th sample: (B, T) -> logits (B * period, T') and hidden layers."""

    def __init__(self, period: int, widths: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        self.period = period
        pairs = zip((1, *widths[:-1]), widths, strict=True)
        self.layers = nnx.List([Layer((PERIOD_KERNEL, *pair), rngs=rngs) for pair in pairs])
        self.out = Layer((3, widths[-1], 1), roles.ROW, rngs=rngs)

    def __call__(self, audio: jax.Array) -> Judgement:
        """Judges audio (B, T)."""
        audio = jnp.pad(audio, ((0, 0), (0, -audio.shape[1] % self.period)), mode="reflect")
        columns = audio.reshape(audio.shape[0], -1, self.period).swapaxes(1, 2)
        columns = columns.reshape(-1, columns.shape[-1])
        x, hidden = columns[..., None], []
        for i, layer in enumerate(self.layers):
            stride = PERIOD_STRIDE if i + 1 < len(self.layers) else 1
            x = jax.nn.leaky_relu(_conv1d(x, layer.kernel[...], stride) + layer.bias[...], LEAK)
            hidden.append(x)
        return (_conv1d(x, self.out.kernel[...], 1) + self.out.bias[...])[..., 0], hidden


class SpectrogramDiscriminator(nnx.Module):
    """Looks at a spectrogram: (B, T) -> logits (B, frames, bins') and hidden layers, band by band."""

    def __init__(
        self, config: DiscriminatorConfig, resolution: tuple[int, int, int], *, rngs: nnx.Rngs
    ) -> None:
        self.config, self.resolution = config, resolution
        channels = [2 if config.complex_spectra else 1, *(layer[0] for layer in config.resolution_layers)]
        taps = [layer[1] for layer in config.resolution_layers]
        self.bands = nnx.List(
            [
                nnx.List(
                    [
                        Layer((3, w, *pair), rngs=rngs)
                        for w, pair in zip(taps, pairwise(channels), strict=True)
                    ]
                )
                for _ in config.bands
            ]
        )
        self.out = Layer((3, 3, channels[-1], 1), roles.ROW, rngs=rngs)

    def spectrogram(self, audio: jax.Array) -> jax.Array:
        """What is looked at, (B, frames, bins, 1 or 2), of audio (B, T)."""
        n_fft, hop, window = self.resolution
        spectrum = spectral.stft(audio, n_fft, hop, window)
        if self.config.complex_spectra:
            return jnp.stack([spectrum.real, spectrum.imag], axis=-1)
        size = spectral.magnitude(spectrum)[..., None]
        return jnp.log(size * n_fft**-0.5 + 1e-3) / 3 + 1 if self.config.log_magnitudes else size

    def __call__(self, audio: jax.Array) -> Judgement:
        """Judges audio (B, T)."""
        return self.look(self.spectrogram(audio))

    def look(self, image: jax.Array) -> Judgement:
        """Judges a spectrogram (B, frames, bins, channels)."""
        bins, ends, hidden = image.shape[2], [], []
        for (low, high), layers in zip(self.config.bands, self.bands, strict=True):
            x = image[:, :, int(low * bins) : int(high * bins)]
            for layer, (_, _, stride) in zip(layers, self.config.resolution_layers, strict=True):
                x = jax.nn.leaky_relu(_conv2d(x, layer.kernel[...], stride) + layer.bias[...], LEAK)
                hidden.append(x)
            ends.append(x)
        joined = jnp.concatenate(ends, axis=2)
        return (_conv2d(joined, self.out.kernel[...], 1) + self.out.bias[...])[..., 0], hidden


def init(config: DiscriminatorConfig, key: jax.Array) -> Params:
    """Fresh parameters: {"period_2": ..., "resolution_1024": ...}."""
    keys = iter(jax.random.split(key, len(config.periods) + len(config.resolutions)))
    periods = {
        f"period_{p}": init_module(PeriodDiscriminator, p, config.period_widths, key=next(keys))
        for p in config.periods
    }
    resolutions = {
        f"resolution_{r[0]}": init_module(SpectrogramDiscriminator, config, r, key=next(keys))
        for r in config.resolutions
    }
    return periods | resolutions


def judge(params: Params, config: DiscriminatorConfig, audio: jax.Array) -> list[Judgement]:
    """Every discriminator's (logits, hidden layers) on audio (B, T)."""
    modules = [
        bind(PeriodDiscriminator, p, config.period_widths, params=params[f"period_{p}"])
        for p in config.periods
    ]
    modules += [
        bind(SpectrogramDiscriminator, config, r, params=params[f"resolution_{r[0]}"])
        for r in config.resolutions
    ]
    return [module(audio) for module in modules]
