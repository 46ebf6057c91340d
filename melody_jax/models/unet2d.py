"""A U-Net on the latents as an image of one channel, frames by latent channels (the kind of Riffusion): models/unet.py.

Neighbouring latent channels have nothing in common, as neighbouring frequencies have: that is what this backbone is
here to show.

Legend: B batch, L latent frames, D latent width.
"""

import dataclasses

import jax
from flax import nnx

from melody_jax.models import dpd, unet
from melody_jax.models.conditioning import Conditions, shared_fields
from melody_jax.models.unet import UNet, UNetConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet2DConfig(UNetConfig):
    """Shape of the network. The defaults are for latents of the paper's rate."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    residual_blocks: int = 2
    attention_levels: int = 1
    head_width: int = 64

    def products(self, frames: int) -> int:
        """See `DenoiserConfig.products`."""
        return unet.products(self, (frames, self.latent_dim), 1)


ABLATION = UNet2DConfig(
    **shared_fields(dpd.ABLATION),
    channels=(16, 32, 64, 120),
    residual_blocks=1,
    attention_levels=1,
    head_width=30,
)
"""As many parameters as `dpd.ABLATION`, within 1 %."""
TINY = UNet2DConfig(
    **shared_fields(dpd.TINY),
    channels=(8, 16),
    residual_blocks=1,
    attention_levels=1,
    head_width=8,
    feed_forward=2,
)


class UNet2D(UNet):
    """The whole network."""

    def __init__(self, config: UNet2DConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, 2, 1, rngs=rngs)

    def __call__(self, noisy: jax.Array, told: Conditions) -> jax.Array:
        """(B, L, D) to (B, L, D)."""
        return self.through(noisy[..., None], told)[..., 0]
