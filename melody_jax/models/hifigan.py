"""The autoencoder of the paper (section 2.5 and appendix): a HiFi-GAN generator (arXiv 2010.05646) and its mirror.

    audio (B, T) --conv--> (B, T, C) --[strided conv, residual stack] x 4--conv--> mean, log variance (B, T / 96, D)
    latents (B, L, D) --conv--> [transposed conv, residual stack] x 4 --conv, tanh--> audio (B, 96 L)

The paper gives rates, channels and (re)sampling kernels and calls the rest HiFi-GAN's. A residual stack is the mean of
one branch a kernel size, each a chain of dilated pairs. HiFi-GAN's own kernels (3, 7, 11) would make the decoder
112.7 M large; (3, 7) make it 61.0 M, where the paper has 60.1 M. The encoder's 40 M fit no reading of the listed
channels: ours has 5.7 M.

B batch, T samples, L latents, D latent channels, C channels, W taps.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.functional import Params, Remat

LEAK = 0.1
LAST_LEAK = 0.01
"""Slopes below zero of the leaky rectifiers: within, and before the last convolution (as in the published code)."""
ENDS = 7
"""Taps of the first and last convolution of either half."""


@dataclass(frozen=True, kw_only=True)
class HiFiGANConfig:
    """Shape of both halves. Defaults are the paper's."""

    encoder_rates: tuple[int, ...] = (2, 3, 4, 4)
    """Factors by which the encoder's stages shorten time."""
    encoder_channels: tuple[int, ...] = (32, 64, 128, 256)
    """Channels after each of them."""
    encoder_kernels: tuple[int, ...] = (5, 7, 9, 9)
    """Taps of their strided convolutions."""
    decoder_rates: tuple[int, ...] = (4, 4, 3, 2)
    """Factors by which the decoder's stages lengthen time; the same product as the encoder's."""
    decoder_channels: tuple[int, ...] = (768, 384, 192, 96)
    """Channels after each of them; before the first there are twice the first's."""
    decoder_kernels: tuple[int, ...] = (9, 9, 5, 7)
    """Taps of their transposed convolutions."""
    residual_kernels: tuple[int, ...] = (3, 7)
    """Taps of the branches of a residual stack."""
    dilations: tuple[int, ...] = (1, 3, 5)
    """Dilations of the pairs in a branch."""
    dtype: str = "float32"
    """Compute type of the convolutions."""
    remat: Remat = "none"
    """What the backward pass computes again: "none", "dots" or "blocks" (models/functional.py)."""

    def __post_init__(self) -> None:
        for half in ("encoder", "decoder"):
            rates, channels, kernels = (
                getattr(self, f"{half}_{name}") for name in ("rates", "channels", "kernels")
            )
            if not len(rates) == len(channels) == len(kernels):
                raise UserError(
                    f"{half}: {len(rates)} rates, {len(channels)} channels, {len(kernels)} kernels, "
                    "there must be as many of each"
                )
            for rate, taps in zip(rates, kernels, strict=True):
                if taps < rate:
                    raise UserError(f"{half}_kernels: {taps} taps would skip samples at rate {rate}")
        if np.prod(self.encoder_rates) != np.prod(self.decoder_rates):
            raise UserError(
                f"encoder_rates {self.encoder_rates} and decoder_rates {self.decoder_rates} have other products"
            )
        if not all(taps % 2 for taps in self.residual_kernels):
            raise UserError(f"residual_kernels {self.residual_kernels} must be odd")

    @property
    def hop(self) -> int:
        """Samples to a latent."""
        return int(np.prod(self.encoder_rates))


class Conv(nnx.Module):
    """A convolution over time; its kernel is (W, C, C'), in the order in which it is applied."""

    def __init__(self, taps: int, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        self.kernel = nnx.Param(init(rngs.params(), (taps, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def _apply(self, x: jax.Array, padding: tuple[int, int], stride: int = 1, dilation: int = 1) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (stride,),
            (padding,),
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y + self.bias[...].astype(x.dtype)

    def __call__(self, x: jax.Array, dilation: int = 1) -> jax.Array:
        """(B, T, C) to (B, T, C'); odd taps."""
        reach = self.kernel.shape[0] // 2 * dilation
        return self._apply(x, (reach, reach), dilation=dilation)

    def down(self, x: jax.Array, rate: int) -> jax.Array:
        """(B, T, C) to (B, T / rate, C')."""
        extra = self.kernel.shape[0] - rate
        return self._apply(x, ((extra + 1) // 2, extra // 2), stride=rate)

    def up(self, x: jax.Array, rate: int) -> jax.Array:
        """(B, T, C) to (B, T * rate, C'): the transposed convolution. An odd rest is cut off at the beginning.

        Every frame is spread over its taps by one matrix product, then they are added where they overlap: on XLA:CPU
        the gradient of `lax.conv` with a dilated input takes many times as long.
        """
        taps, inputs, outputs = self.kernel.shape
        batch, time, _ = x.shape
        kernel = self.kernel[...][::-1].swapaxes(0, 1).reshape(inputs, taps * outputs).astype(x.dtype)
        spread = (x @ kernel).reshape(batch, time, taps, outputs)
        pieces = -(-taps // rate)
        spread = jnp.pad(spread, ((0, 0), (0, 0), (0, pieces * rate - taps), (0, 0)))
        spread = spread.reshape(batch, time, pieces, rate, outputs)
        shifted = (
            jnp.pad(spread[:, :, i], ((0, 0), (i, pieces - 1 - i), (0, 0), (0, 0))) for i in range(pieces)
        )
        begin = (taps - rate + 1) // 2
        y = sum(shifted, jnp.zeros((), x.dtype)).reshape(batch, -1, outputs)[:, begin : begin + time * rate]
        return y + self.bias[...].astype(x.dtype)


class ResidualStack(nnx.Module):
    """HiFi-GAN's multi-receptive-field fusion: the mean over kernel sizes of chains of dilated residual pairs."""

    def __init__(self, config: HiFiGANConfig, channels: int, *, rngs: nnx.Rngs) -> None:
        self.dilations = config.dilations

        def branch(taps: int) -> nnx.List:
            return nnx.List(
                [Conv(taps, channels, channels, rngs=rngs) for _ in range(2 * len(config.dilations))]
            )

        self.branches = nnx.List([branch(taps) for taps in config.residual_kernels])

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, C) to the same."""
        total = jnp.zeros_like(x)
        for branch in self.branches:
            y = x
            for i, dilation in enumerate(self.dilations):
                inner = branch[2 * i](jax.nn.leaky_relu(y, LEAK), dilation)
                y = y + branch[2 * i + 1](jax.nn.leaky_relu(inner, LEAK))
            total = total + y
        return total / len(self.branches)


class Half(nnx.Module):
    """Encoder or decoder: a convolution, stages of resampling and a residual stack, a convolution."""

    def __init__(self, config: HiFiGANConfig, latent_width: int, encodes: bool, *, rngs: nnx.Rngs) -> None:
        self.config, self.encodes = config, encodes
        if encodes:
            channels, taps, self.rates = config.encoder_channels, config.encoder_kernels, config.encoder_rates
            first, inputs, outputs = channels[0], 1, 2 * latent_width
        else:
            channels, taps, self.rates = config.decoder_channels, config.decoder_kernels, config.decoder_rates
            first, inputs, outputs = 2 * channels[0], latent_width, 1
        self.first = Conv(ENDS, inputs, first, rngs=rngs)
        pairs = zip(taps, (first, *channels[:-1]), channels, strict=True)
        self.resamplers = nnx.List([Conv(*shape, rngs=rngs) for shape in pairs])
        self.stacks = nnx.List([ResidualStack(config, width, rngs=rngs) for width in channels])
        self.last = Conv(ENDS, channels[-1], outputs, rngs=rngs)

    def _stage(self, index: int, x: jax.Array) -> jax.Array:
        resampler, rate = self.resamplers[index], self.rates[index]
        x = jax.nn.leaky_relu(x, LEAK)
        return self.stacks[index](resampler.down(x, rate) if self.encodes else resampler.up(x, rate))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, 1) to (B, L, 2 D), or (B, L, D) to (B, T, 1)."""
        x = self.first(x)
        stage = functional.rematerialised(self._stage, self.config.remat, static_argnums=(0,))
        for index in range(len(self.rates)):
            x = stage(index, x)
        x = self.last(jax.nn.leaky_relu(x, LAST_LEAK)).astype(jnp.float32)
        return x if self.encodes else jnp.tanh(x)


def init(config: HiFiGANConfig, latent_width: int, key: jax.Array) -> Params:
    """Fresh parameters of both halves: {"encoder", "decoder"}."""
    keys = jax.random.split(key)
    return {
        name: functional.init(Half, config, latent_width, encodes, key=key)
        for name, encodes, key in zip(("encoder", "decoder"), (True, False), keys, strict=True)
    }


def encode(params: Params, config: HiFiGANConfig, latent_width: int, audio: jax.Array) -> jax.Array:
    """Mean and log variance side by side, float32 (B, L, 2 D), of audio (B, T), T a multiple of `config.hop`."""
    half = functional.bind(Half, config, latent_width, True, params=params["encoder"])
    return half(audio[..., None].astype(config.dtype))


def decode(
    params: Params, config: HiFiGANConfig, latents: jax.Array, first: jax.typing.ArrayLike = 0
) -> jax.Array:
    """Latents (B, L, D) to audio (B, L * hop), float32; to this codec it is all one where they are in a piece."""
    del first
    half = functional.bind(Half, config, latents.shape[-1], False, params=params["decoder"])
    return half(latents.astype(config.dtype))[..., 0]


def reconstruct(params: Params, config: HiFiGANConfig, latents: jax.Array, audio: jax.Array) -> jax.Array:
    """`decode`: this codec needs nothing of the original audio."""
    del audio
    return decode(params, config, latents)


def _reach(config: HiFiGANConfig, kernels: tuple[int, ...], rates: tuple[int, ...], encodes: bool) -> int:
    """Samples on either side of a hop that the encoder sees, or that a latent of the decoder touches, at most."""
    ends = ENDS // 2
    stack = (max(config.residual_kernels) // 2) * sum(dilation + 1 for dilation in config.dilations)
    stride = 1 if encodes else config.hop
    total = ends * stride
    for taps, rate in zip(kernels, rates, strict=True):
        extra = -(-(taps - rate) // 2)
        if encodes:
            total, stride = total + extra * stride + stack * stride * rate, stride * rate
        else:
            stride //= rate
            total += (extra + stack) * stride
    return total + ends * stride


def decoder_reach(config: HiFiGANConfig) -> int:
    """How many latents on either side of its own a sample can depend on."""
    return -(-_reach(config, config.decoder_kernels, config.decoder_rates, encodes=False) // config.hop)


def encoder_reach(config: HiFiGANConfig) -> int:
    """How many samples on either side of its own `hop` a latent can depend on, at most."""
    return _reach(config, config.encoder_kernels, config.encoder_rates, encodes=True)
