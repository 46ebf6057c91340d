"""The paper's codec against Hugging Face's HiFi-GAN generator and torch's strided and transposed convolutions."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from melody_jax.models import functional
from melody_jax.models.hifigan import HiFiGANConfig, HiFiGANDecoder, TimeConv

torch = pytest.importorskip("torch", reason="parity needs: pip install melody_jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs: pip install melody_jax[parity]")

CONFIG = HiFiGANConfig(
    encoder_rates=(4, 3),
    encoder_channels=(4, 8),
    encoder_kernels=(8, 5),
    decoder_rates=(4, 3),
    decoder_channels=(16, 8),
    decoder_kernels=(8, 5),
)


def convolution(layer: torch.nn.Conv1d) -> functional.Params:
    """Our kernel and bias of a convolution."""
    return {"kernel": layer.weight.detach().numpy().transpose(2, 1, 0), "bias": layer.bias.detach().numpy()}


def transposed(layer: torch.nn.ConvTranspose1d) -> functional.Params:
    """Ours of a transposed one: the taps the other way round."""
    return {
        "kernel": layer.weight.detach().numpy().transpose(2, 0, 1)[::-1],
        "bias": layer.bias.detach().numpy(),
    }


def test_decoder(compare) -> None:
    torch.manual_seed(0)
    theirs = transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=6,
            upsample_initial_channel=32,
            upsample_rates=CONFIG.decoder_rates,
            upsample_kernel_sizes=CONFIG.decoder_kernels,
            resblock_kernel_sizes=CONFIG.residual_kernels,
            resblock_dilation_sizes=[CONFIG.dilations] * 2,
            normalize_before=False,
        )
    ).eval()
    for parameter in theirs.parameters():
        parameter.data = torch.randn_like(parameter) * 0.15
    branches = iter(theirs.resblocks)
    params = {
        "first": convolution(theirs.conv_pre),
        "resamplers": {str(i): transposed(layer) for i, layer in enumerate(theirs.upsampler)},
        "stacks": {
            str(i): {
                "branches": {
                    str(k): {
                        str(2 * d + j): convolution(pair[d]) for d in range(3) for j, pair in enumerate(pairs)
                    }
                    for k, block in ((k, next(branches)) for k in range(2))
                    for pairs in [(block.convs1, block.convs2)]
                }
            }
            for i in range(2)
        },
        "last": convolution(theirs.conv_post),
    }
    latents = np.random.default_rng(0).standard_normal((2, 11, 6)).astype(np.float32)
    ours = functional.bind(HiFiGANDecoder, CONFIG, 6, params=params)
    compare(ours(jnp.asarray(latents)), theirs(torch.tensor(latents)))


@pytest.mark.parametrize(("taps", "rate"), [(9, 4), (7, 2), (5, 3), (8, 4)])
def test_resampling(taps, rate, compare) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 12)
    extra = taps - rate
    up = torch.nn.ConvTranspose1d(5, 3, taps, rate, padding=(extra + 1) // 2, output_padding=extra % 2)
    down = torch.nn.Conv1d(5, 3, taps, rate)
    ours = TimeConv(taps, 5, 3, rngs=nnx.Rngs(0))
    for theirs, convert, apply in ((up, transposed, ours.up), (down, convolution, ours.down)):
        layer = convert(theirs)
        ours.kernel, ours.bias = (
            nnx.Param(jnp.asarray(layer["kernel"])),
            nnx.Param(jnp.asarray(layer["bias"])),
        )
        padded = x if theirs is up else torch.nn.functional.pad(x, ((extra + 1) // 2, extra // 2))
        compare(apply(jnp.asarray(x.numpy().swapaxes(1, 2)), rate).swapaxes(1, 2), theirs(padded))
