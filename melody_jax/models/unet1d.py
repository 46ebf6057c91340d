"""A U-Net over time with the latents' channels as its own (the kind of Moûsai, arXiv 2301.11757): models/unet.py.

Legend: B batch, L latent frames, D latent width.
"""

import dataclasses

import jax
from flax import nnx

from melody_jax.models import dpd, unet
from melody_jax.models.conditioning import Conditions, shared_fields
from melody_jax.models.unet import UNet, UNetConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet1DConfig(UNetConfig):
    """Shape of the network. The defaults are for latents of the paper's rate."""

    channels: tuple[int, ...] = (256, 512, 512, 768, 768, 1024)
    residual_blocks: int = 2
    attention_levels: int = 4
    head_width: int = 64

    def products(self, frames: int) -> int:
        """See `DenoiserConfig.products`."""
        return unet.products(self, (frames,), self.latent_dim)


ABLATION = UNet1DConfig(
    **shared_fields(dpd.ABLATION),
    channels=(64, 64, 96, 96),
    residual_blocks=1,
    attention_levels=3,
    head_width=32,
)
"""As many parameters as `dpd.ABLATION`, within 1 %."""
TINY = UNet1DConfig(
    **shared_fields(dpd.TINY),
    channels=(16, 24),
    residual_blocks=1,
    attention_levels=1,
    head_width=12,
    feed_forward=2,
)


class UNet1D(UNet):
    """The whole network."""

    def __init__(self, config: UNet1DConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, 1, config.latent_dim, rngs=rngs)

    def __call__(self, noisy: jax.Array, told: Conditions) -> jax.Array:
        """(B, L, D) to (B, L, D)."""
        return self.through(noisy, told)
