"""The autoencoder of the paper (MeLoDy, arXiv 2305.15719, section 4.2 and appendix): a HiFi-GAN generator (arXiv
2010.05646) and its mirror image.

    audio (B, T) --conv--> (B, T, C) --[strided conv, residual stack] x 4--conv--> mean, log variance (B, T / 96, D)
    latents (B, L, D) --conv--> [transposed conv, residual stack] x 4 --conv, tanh--> audio (B, 96 L)

The paper gives rates, channels and (re)sampling kernels and otherwise refers to HiFi-GAN. A residual stack is the mean
over kernel sizes of a chain of dilated pairs. With HiFi-GAN's own kernels (3, 7, 11) the decoder would have 112.7 M
parameters; with (3, 7) it has 61.0 M, where the paper has 60.1 M. No reading of the listed channels gives the encoder's
40 M; ours has 5.7 M.

B batch, T samples, L latents, D latent channels, C channels, W taps.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.functional import Remat, make_rngs
from melody_jax.models.products import product
from melody_jax.models.stft_config import check_format
from melody_jax.models.stft_synthesis import MagnitudePair
from melody_jax.roles import BIAS, CONV

LEAK = 0.1
LAST_LEAK = 0.01
"""Negative slopes of the leaky rectifiers: inside, and before the last convolution (as in the published code)."""
ENDS = 7
"""Taps of the first and last convolution of either half."""


@dataclass(frozen=True, kw_only=True)
class HiFiGANConfig:
    """Shape of both halves. Defaults are the paper's."""

    sample_rate: int = SAMPLE_RATE
    """Samples per second."""
    channels: int = 1
    """Channels of the audio, 1 or 2."""
    encoder_rates: tuple[int, ...] = (2, 3, 4, 4)
    """Downsampling factors of the encoder's stages."""
    encoder_channels: tuple[int, ...] = (32, 64, 128, 256)
    """Channels after each stage."""
    encoder_kernels: tuple[int, ...] = (5, 7, 9, 9)
    """Taps of the strided convolutions."""
    decoder_rates: tuple[int, ...] = (4, 4, 3, 2)
    """Upsampling factors of the decoder's stages; their product equals the encoder's."""
    decoder_channels: tuple[int, ...] = (768, 384, 192, 96)
    """Channels after each stage; before the first stage there are twice as many as after it."""
    decoder_kernels: tuple[int, ...] = (9, 9, 5, 7)
    """Taps of the transposed convolutions."""
    residual_kernels: tuple[int, ...] = (3, 7)
    """Taps of the branches of a residual stack."""
    dilations: tuple[int, ...] = (1, 3, 5)
    """Dilations of the pairs in a branch."""
    dtype: str = "float32"
    """Compute type of the convolutions."""
    remat: Remat = "none"
    """What the backward pass recomputes: "none", "dots" or "blocks" (models/functional.py)."""

    def __post_init__(self) -> None:
        check_format(self.sample_rate, self.channels)
        for half in ("encoder", "decoder"):
            rates, channels, kernels = (
                getattr(self, f"{half}_{name}") for name in ("rates", "channels", "kernels")
            )
            if not len(rates) == len(channels) == len(kernels):
                raise UserError(
                    f"{half}: {len(rates)} rates, {len(channels)} channels, {len(kernels)} kernels, "
                    "there must be equally many"
                )
            for rate, taps in zip(rates, kernels, strict=True):
                if taps < rate:
                    raise UserError(f"{half}_kernels: {taps} taps would skip samples at rate {rate}")
        if np.prod(self.encoder_rates) != np.prod(self.decoder_rates):
            raise UserError(
                f"encoder_rates {self.encoder_rates} and decoder_rates {self.decoder_rates} have different products"
            )
        if not all(taps % 2 for taps in self.residual_kernels):
            raise UserError(f"residual_kernels {self.residual_kernels} must be odd")

    @property
    def hop(self) -> int:
        """Samples per latent."""
        return int(np.prod(self.encoder_rates))

    @property
    def decoder_reach(self) -> int:
        """See `vae.decoder_reach`."""
        reach = _reach(self, self.decoder_kernels, self.decoder_rates, is_encoder=False)
        return -(-reach // self.hop)

    @property
    def encoder_reach(self) -> int:
        """See `vae.encoder_reach`."""
        return _reach(self, self.encoder_kernels, self.encoder_rates, is_encoder=True)


class TimeConv(nnx.Module):
    """A convolution over time; its kernel is (W, C, C'), taps in the order of time."""

    def __init__(self, taps: int, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        self.kernel = nnx.Param(init(rngs.params(), (taps, inputs, outputs)), role=CONV)
        self.bias = nnx.Param(jnp.zeros(outputs), role=BIAS)

    def _apply(self, x: Array, padding: tuple[int, int], stride: int = 1, dilation: int = 1) -> Array:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (stride,),
            (padding,),
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y + self.bias[...].astype(x.dtype)

    def __call__(self, x: Float[Array, "B T C"], dilation: int = 1) -> Float[Array, "B T _"]:
        """(B, T, C) to (B, T, C'); odd taps."""
        reach = self.kernel.shape[0] // 2 * dilation
        return self._apply(x, (reach, reach), dilation=dilation)

    def down(self, x: Float[Array, "B T C"], rate: int) -> Float[Array, "B _ _"]:
        """(B, T, C) to (B, T / rate, C')."""
        extra = self.kernel.shape[0] - rate
        return self._apply(x, ((extra + 1) // 2, extra // 2), stride=rate)

    def up(self, x: Float[Array, "B T C"], rate: int) -> Float[Array, "B _ _"]:
        """(B, T, C) to (B, T * rate, C'): the transposed convolution. An odd remainder is cut at the beginning.

        One matrix product spreads every frame over its taps, and overlapping taps are added: on XLA:CPU the gradient of
        `lax.conv` with a dilated input takes many times as long.
        """
        taps, inputs, outputs = self.kernel.shape
        batch, time, _ = x.shape
        kernel = self.kernel[...][::-1].swapaxes(0, 1).reshape(inputs, taps * outputs).astype(x.dtype)
        expanded = product(x, kernel).reshape(batch, time, taps, outputs)
        strides = -(-taps // rate)
        expanded = jnp.pad(expanded, ((0, 0), (0, 0), (0, strides * rate - taps), (0, 0)))
        expanded = expanded.reshape(batch, time, strides, rate, outputs)
        shifted = (
            jnp.pad(expanded[:, :, i], ((0, 0), (i, strides - 1 - i), (0, 0), (0, 0))) for i in range(strides)
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
                [TimeConv(taps, channels, channels, rngs=rngs) for _ in range(2 * len(config.dilations))]
            )

        self.branches = nnx.List([branch(taps) for taps in config.residual_kernels])

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """(B, T, C) to the same."""
        total = jnp.zeros_like(x)
        for branch in self.branches:
            y = x
            for i, dilation in enumerate(self.dilations):
                inner = branch[2 * i](jax.nn.leaky_relu(y, LEAK), dilation)
                y = y + branch[2 * i + 1](jax.nn.leaky_relu(inner, LEAK))
            total = total + y
        return total / len(self.branches)


class ResamplingStages(nnx.Module):
    """Common part of encoder and decoder: a convolution, stages of resampling and a residual stack, a convolution."""

    def __init__(
        self,
        config: HiFiGANConfig,
        taps: tuple[int, ...],
        widths: tuple[int, ...],
        inputs: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """`widths`: channels before the first stage and after each; `taps`: of the resampling convolutions."""
        self.config = config
        self.first = TimeConv(ENDS, inputs, widths[0], rngs=rngs)
        shapes = zip(taps, widths[:-1], widths[1:], strict=True)
        self.resamplers = nnx.List([TimeConv(*shape, rngs=rngs) for shape in shapes])
        self.stacks = nnx.List([ResidualStack(config, width, rngs=rngs) for width in widths[1:]])
        self.last = TimeConv(ENDS, widths[-1], outputs, rngs=rngs)

    def resample(self, index: int, x: Array) -> Array:
        """The resampling convolution of a stage."""
        raise NotImplementedError

    def _stage(self, index: int, x: Array) -> Array:
        return self.stacks[index](self.resample(index, jax.nn.leaky_relu(x, LEAK)))

    def run(self, x: Float[Array, "B _ C"]) -> Float[Array, "B _ _"]:
        """(B, T, inputs) to (B, T', outputs), float32."""
        x = self.first(x)
        stage = functional.rematerialised(self._stage, self.config.remat, static_argnums=(0,))
        for index in range(len(self.resamplers)):
            x = stage(index, x)
        return self.last(jax.nn.leaky_relu(x, LAST_LEAK)).astype(jnp.float32)


class HiFiGANEncoder(ResamplingStages):
    """Audio to latents, or to their mean and log variance."""

    def __init__(self, config: HiFiGANConfig, outputs: int, *, rngs: nnx.Rngs) -> None:
        widths = (config.encoder_channels[0], *config.encoder_channels)
        super().__init__(config, config.encoder_kernels, widths, config.channels, outputs, rngs=rngs)

    def resample(self, index: int, x: Array) -> Array:
        """The strided convolution of a stage."""
        return self.resamplers[index].down(x, self.config.encoder_rates[index])

    def __call__(self, audio: Float[Array, " B T *C"]) -> Float[Array, "B L _"]:
        """Audio (B, T) or (B, T, C), T a multiple of `config.hop`, to float32 (B, L, outputs)."""
        return self.run(audio.reshape(*audio.shape[:2], -1).astype(self.config.dtype))


class HiFiGANDecoder(ResamplingStages):
    """Latents to audio."""

    def __init__(self, config: HiFiGANConfig, latent_width: int, *, rngs: nnx.Rngs) -> None:
        widths = (2 * config.decoder_channels[0], *config.decoder_channels)
        super().__init__(config, config.decoder_kernels, widths, latent_width, config.channels, rngs=rngs)

    def resample(self, index: int, x: Array) -> Array:
        """The transposed convolution of a stage."""
        return self.resamplers[index].up(x, self.config.decoder_rates[index])

    def __call__(self, latents: Float[Array, "B L D"], first: ArrayLike = 0) -> Float[Array, " B T *C"]:
        """Latents (B, L, D) to audio (B, L * hop), or (B, L * hop, C), float32; the position `first` has no effect."""
        audio = jnp.tanh(self.run(latents.astype(self.config.dtype)))
        return audio[..., 0] if self.config.channels == 1 else audio

    def reconstruct(
        self, latents: Float[Array, "B L D"], audio: Float[Array, " B T *C"]
    ) -> tuple[Float[Array, " B T *C"], list[MagnitudePair]]:
        """See `vae.reconstruct`; this codec needs nothing of the original, and writes no magnitudes."""
        return self(latents), []


def halves(
    config: HiFiGANConfig, outputs: int, latent_width: int, key: PRNGKeyArray
) -> tuple[HiFiGANEncoder, HiFiGANDecoder]:
    """Encoder and decoder, see `vae.CODECS`."""
    encoder_key, decoder_key = jax.random.split(key)
    encoder = HiFiGANEncoder(config, outputs, rngs=make_rngs(encoder_key))
    return encoder, HiFiGANDecoder(config, latent_width, rngs=make_rngs(decoder_key))


def _reach(config: HiFiGANConfig, kernels: tuple[int, ...], rates: tuple[int, ...], is_encoder: bool) -> int:
    """Samples before or after a latent's own that the encoder depends on, or that a latent of the decoder affects."""
    ends = ENDS // 2
    stack = (max(config.residual_kernels) // 2) * sum(dilation + 1 for dilation in config.dilations)
    stride = 1 if is_encoder else config.hop
    total = ends * stride
    for taps, rate in zip(kernels, rates, strict=True):
        extra = -(-(taps - rate) // 2)
        if is_encoder:
            total += extra * stride + stack * stride * rate
            stride *= rate
        else:
            stride //= rate
            total += (extra + stack) * stride
    return total + ends * stride
