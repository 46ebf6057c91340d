"""The residual block and the convolutions of the U-Nets against those of diffusers and torch.

diffusers modulates all frames by one vector and normalises groups of channels: the blocks are compared at one angle for
all frames, with torch's root-mean-square norm in place of theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from melody_jax.models import functional, unet
from melody_jax.models.unet2d import TINY

torch = pytest.importorskip("torch", reason="parity needs: pip install melody_jax[parity]")
resnet = pytest.importorskip("diffusers.models.resnet", reason="parity needs: pip install melody_jax[parity]")

BATCH, FRAMES, ROWS = 2, 7, 6


class FrameNorm(torch.nn.Module):
    """Each frame of (B, C, L, F) divided by its root mean square."""

    def __init__(self, scale: np.ndarray) -> None:
        super().__init__()
        self.scale = torch.tensor(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, L, F) to the same."""
        frames = x.permute(0, 2, 3, 1)
        return (torch.nn.functional.rms_norm(frames, frames.shape[2:], eps=1e-6) * self.scale).permute(
            0, 3, 1, 2
        )


def randomise(module: nnx.Module) -> dict:
    """Every parameter of a module drawn anew, as nested dicts, in place."""
    rng = np.random.default_rng(1)
    state = nnx.state(module, nnx.Param)
    drawn = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), state)
    nnx.update(module, drawn)
    return nnx.to_pure_dict(drawn)


def images(channels: int) -> np.ndarray:
    """(B, L, F, C)."""
    return np.random.default_rng(2).normal(size=(BATCH, FRAMES, ROWS, channels)).astype(np.float32)


def to_torch(x: np.ndarray) -> torch.Tensor:
    """(B, L, F, C) to (B, C, L, F)."""
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def set_linear(layer: torch.nn.Module, weights: dict) -> None:
    """Gives a torch layer the kernel of one of ours: (..., inputs, outputs)."""
    kernel = np.asarray(weights["kernel"])
    order = (kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
    weight = torch.tensor(np.ascontiguousarray(kernel.transpose(order)))
    layer.weight.data = weight.reshape(layer.weight.shape)
    if layer.bias is not None:
        layer.bias.data = torch.tensor(np.asarray(weights["bias"]))


@pytest.mark.parametrize("outputs", [8, 12])
def test_residual_block(outputs: int, compare) -> None:
    ours = unet.ResidualBlock(2, 8, outputs, TINY, rngs=functional.make_rngs(jax.random.key(0)))
    weights = randomise(ours)
    theirs = resnet.ResnetBlock2D(
        in_channels=8,
        out_channels=outputs,
        temb_channels=TINY.width,
        groups=1,
        time_embedding_norm="scale_shift",
        skip_time_act=True,
        conv_shortcut_bias=False,
    )
    theirs.norm1, theirs.norm2 = (FrameNorm(weights[name]["scale"]) for name in ("norm_in", "norm_out"))
    set_linear(theirs.conv1, weights["conv_in"])
    set_linear(theirs.conv2, weights["conv_out"])
    set_linear(theirs.time_emb_proj, weights["modulation"])
    if outputs != 8:
        set_linear(theirs.conv_shortcut, weights["shortcut"])
    x = images(8)
    modulation = np.random.default_rng(3).normal(size=(BATCH, TINY.width)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(to_torch(x), torch.tensor(modulation))
    every_frame = np.repeat(modulation[:, None], FRAMES, axis=1)
    compare(ours(jnp.asarray(x), jnp.asarray(every_frame)), expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution(stride: int, compare) -> None:
    ours = unet.PatchConv(2, 5, 4, "float32", rngs=functional.make_rngs(jax.random.key(0)))
    theirs = torch.nn.Conv2d(5, 4, 3, stride=stride, padding=1)
    set_linear(theirs, randomise(ours))
    x = images(5)
    with torch.no_grad():
        expected = theirs(to_torch(x))
    compare(ours(jnp.asarray(x), stride), expected.permute(0, 2, 3, 1))
