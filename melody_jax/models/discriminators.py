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

from melody_jax import spectral
from melody_jax.errors import UserError
from melody_jax.models.functional import Params, bind
from melody_jax.models.functional import init as init_module

PERIOD_KERNEL = 5  # taps of the multi-period convolutions
PERIOD_STRIDE = 3  # stride of all of them but the last
PATCH = 16  # bins in a patch of the spectrogram discriminators' first layer, which moves by half of it
LEAK = 0.1  # slope of the leaky rectifier below zero

Judgement = tuple[jax.Array, list[jax.Array]]


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Shapes of the discriminators. Defaults are `mini`: an eighth of HiFi-GAN's widths, a quarter of UnivNet's."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    """Samples between neighbours in the columns that the multi-period discriminators see."""
    period_widths: tuple[int, ...] = (8, 32, 64, 128, 128)
    """Channels of the multi-period layers; each but the last shortens time by 3."""
    resolutions: tuple[tuple[int, int], ...] = ((2048, 480), (1024, 240), (512, 120))
    """(n_fft, hop) in samples of the spectrogram discriminators."""
    resolution_widths: tuple[int, ...] = (16, 32, 32)
    """Channels of the spectrogram layers; the first shortens frequency by 8, the others by 2."""

    def __post_init__(self) -> None:
        if len(self.period_widths) < 2 or len(self.resolution_widths) < 2:
            raise UserError("discriminator widths: at least two layers are needed")


TINY = DiscriminatorConfig(periods=(2, 3), period_widths=(4, 8, 8), resolutions=((512, 120),), resolution_widths=(4, 8))


def _patches(x: jax.Array, width: int, stride: int) -> jax.Array:
    """What a 'same' convolution over the last axis but one sees: (N, T, C) -> (N, ceil(T / stride), width * C)."""
    batch, length, channels = x.shape
    count, pieces = -(-length // stride), -(-width // stride)
    left = (width - stride + 1) // 2
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

    def __init__(self, shape: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(shape[-1]))


class PeriodDiscriminator(nnx.Module):
    """Looks at every `period`-th sample: (B, T) -> logits (B * period, T') and hidden layers."""

    def __init__(self, period: int, widths: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        self.period = period
        pairs = zip((1, *widths[:-1]), widths, strict=True)
        self.layers = nnx.List([Layer((PERIOD_KERNEL, *pair), rngs=rngs) for pair in pairs])
        self.out = Layer((3, widths[-1], 1), rngs=rngs)

    def __call__(self, audio: jax.Array) -> Judgement:
        """Judges audio (B, T)."""
        usable = audio.shape[1] // (self.period * PERIOD_STRIDE) * self.period * PERIOD_STRIDE
        columns = audio[:, :usable].reshape(audio.shape[0], -1, self.period).swapaxes(1, 2)
        columns = columns.reshape(-1, columns.shape[-1])
        x, hidden = columns[..., None], []
        for i, layer in enumerate(self.layers):
            stride = PERIOD_STRIDE if i + 1 < len(self.layers) else 1
            x = jax.nn.leaky_relu(_conv1d(x, layer.kernel[...], stride) + layer.bias[...], LEAK)
            hidden.append(x)
        return (_conv1d(x, self.out.kernel[...], 1) + self.out.bias[...])[..., 0], hidden


class SpectrogramDiscriminator(nnx.Module):
    """Looks at log magnitudes: (B, T) -> logits (B, frames, bins') and hidden layers.

    The logarithm makes the quiet upper octaves, where a decoder blurs first, as visible as the loud ones.
    """

    def __init__(self, n_fft: int, hop: int, widths: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        self.n_fft, self.hop = n_fft, hop
        pairs = pairwise(widths)
        self.first = Layer((3, PATCH, 1, widths[0]), rngs=rngs)
        self.layers = nnx.List([Layer((3, 3, *pair), rngs=rngs) for pair in pairs])
        self.out = Layer((3, 3, widths[-1], 1), rngs=rngs)

    def __call__(self, audio: jax.Array) -> Judgement:
        """Judges audio (B, T)."""
        size = spectral.magnitude(spectral.stft(audio, self.n_fft, self.hop)[..., :-1]) * self.n_fft**-0.5
        x = (jnp.log(size + 1e-3) / 3 + 1)[..., None]
        hidden = []
        for layer, stride in zip([self.first, *self.layers], [PATCH // 2, *(2 for _ in self.layers)], strict=True):
            x = jax.nn.leaky_relu(_conv2d(x, layer.kernel[...], stride) + layer.bias[...], LEAK)
            hidden.append(x)
        return (_conv2d(x, self.out.kernel[...], 1) + self.out.bias[...])[..., 0], hidden


def init(config: DiscriminatorConfig, key: jax.Array) -> Params:
    """Fresh parameters: {"period_2": ..., "resolution_1024": ...}."""
    keys = iter(jax.random.split(key, len(config.periods) + len(config.resolutions)))
    periods = {
        f"period_{p}": init_module(PeriodDiscriminator, p, config.period_widths, key=next(keys)) for p in config.periods
    }
    resolutions = {
        f"resolution_{r[0]}": init_module(SpectrogramDiscriminator, *r, config.resolution_widths, key=next(keys))
        for r in config.resolutions
    }
    return periods | resolutions


def judge(params: Params, config: DiscriminatorConfig, audio: jax.Array) -> list[Judgement]:
    """Every discriminator's (logits, hidden layers) on audio (B, T)."""
    modules = [bind(PeriodDiscriminator, p, config.period_widths, params=params[f"period_{p}"]) for p in config.periods]
    modules += [
        bind(SpectrogramDiscriminator, *r, config.resolution_widths, params=params[f"resolution_{r[0]}"])
        for r in config.resolutions
    ]
    return [module(audio) for module in modules]
