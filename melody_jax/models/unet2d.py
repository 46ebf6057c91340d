"""A two-dimensional U-Net over frames and latent channels, as Riffusion treats spectrograms; from models/unet.py.

Neighbouring frequencies are related, neighbouring latent channels are not. This backbone shows what that costs.

Legend: B batch, L latent frames, D latent width.
"""

import dataclasses

from flax import nnx
from jaxtyping import Array, Float

from melody_jax.errors import UserError
from melody_jax.models import dpd, unet
from melody_jax.models.conditioning import Conditioning, shared_fields
from melody_jax.models.unet import UNet, UNetConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet2DConfig(UNetConfig):
    """Shape of the network. The defaults suit latents at the paper's rate, 250 Hz."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    residual_blocks: int = 2
    attention_levels: int = 1
    head_width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lower_ratio:
            raise UserError(f"lower_ratio is {self.lower_ratio}; a U-Net over two axes refines none: set 0")

    def macs(self, frames: int) -> int:
        """See `DenoiserConfig.macs`."""
        return unet.macs(self, (frames, self.latent_dim), 1, 1)


ABLATION = UNet2DConfig(
    **shared_fields(dpd.ABLATION),
    channels=(16, 32, 64, 120),
    residual_blocks=1,
    attention_levels=1,
    head_width=30,
)
"""Parameters within 1 % of `dpd.ABLATION`."""
TINY = UNet2DConfig(
    **shared_fields(dpd.TINY),
    channels=(8, 16),
    residual_blocks=1,
    attention_levels=1,
    head_width=8,
    feed_forward=2,
)


class UNet2D(UNet):
    """The network: convolutions over time and latent channels."""

    def __init__(self, config: UNet2DConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, 2, 1, 1, rngs=rngs)

    def __call__(self, noisy: Float[Array, "B L D"], cond: Conditioning) -> Float[Array, "B L D"]:
        """(B, L, D) to (B, L, D)."""
        return self.forward(noisy[..., None], cond)[..., 0]
