"""A one-dimensional U-Net over time, as in Moûsai (arXiv 2301.11757); built from models/unet.py.

Legend: B batch, L latent frames, D latent width.
"""

import dataclasses

from flax import nnx
from jaxtyping import Array, Float

from melody_jax.models import dpd, unet
from melody_jax.models.conditioning import Conditioning, shared_fields
from melody_jax.models.unet import UNet, UNetConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet1DConfig(UNetConfig):
    """Shape of the network. The defaults suit latents at the paper's rate, 250 Hz."""

    channels: tuple[int, ...] = (256, 512, 512, 768, 768, 1024)
    residual_blocks: int = 2
    attention_levels: int = 4
    head_width: int = 64

    def macs(self, frames: int) -> int:
        """See `DenoiserConfig.macs`."""
        return unet.macs(self, (frames,), self.input_dim, self.latent_dim)


ABLATION = UNet1DConfig(
    **shared_fields(dpd.ABLATION),
    channels=(64, 64, 96, 96),
    residual_blocks=1,
    attention_levels=3,
    head_width=32,
)
"""Parameters within 1 % of `dpd.ABLATION`."""
TINY = UNet1DConfig(
    **shared_fields(dpd.TINY),
    channels=(16, 24),
    residual_blocks=1,
    attention_levels=1,
    head_width=12,
    feed_forward=2,
)


class UNet1D(UNet):
    """The network: convolutions over time, latent channels as channels."""

    def __init__(self, config: UNet1DConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, 1, config.input_dim, config.latent_dim, rngs=rngs)

    def __call__(self, noisy: Float[Array, "B L _"], cond: Conditioning) -> Float[Array, "B L D"]:
        """(B, L, `input_dim`) to (B, L, D)."""
        return self.forward(noisy, cond)
