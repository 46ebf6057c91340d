"""A diffusion transformer over latent frames (DiT, arXiv 2212.09748) with cross-attention to the semantic tokens.

    H = z W_in + E_angle + E_aligned
    a block:   H = H + g1 Attention(modulated norm of H);  H = H + CrossAttention(norm of H)
               H = H + g2 FeedForward(modulated norm of H)
    v = (modulated norm of H) W_out

Scale, shift and gate g of each frame are functions of its own angle and the pooled condition, and zero at
initialisation (AdaLN-zero): every block starts as the identity except for a faint cross-attention. Positions are
rotary, in token units. Without a condition cross-attention attends to the frames themselves, as in DPD.

Legend: B batch, L latent frames, D latent width, W width, U semantic tokens.
"""

import dataclasses
from functools import partial

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from melody_jax import sharding
from melody_jax.errors import UserError
from melody_jax.models import dpd, functional
from melody_jax.models.conditioning import SMALL_INIT, Backbone, Conditioning, DenoiserConfig, shared_fields
from melody_jax.models.layers import Linear, RMSNorm
from melody_jax.models.modulation import AdaLN
from melody_jax.models.roformer import Attention, FeedForward


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig(DenoiserConfig):
    """Shape of the network. The defaults are the depth of DiT-L at the width of the paper's DPD."""

    blocks: int = 24
    """Transformer blocks."""
    heads: int = 12
    """Attention heads."""
    feed_forward: int = 4
    """Width of a feed-forward layer as a multiple of W."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads or self.width // self.heads % 2:
            raise UserError(
                f"width {self.width} in {self.heads} heads: rotary positions need an even width per head"
            )

    def macs(self, frames: int) -> int:
        """See `DenoiserConfig.macs`."""
        w = self.width
        tokens = self.tokens(frames)
        dense = w * w
        block = frames * ((10 + 2 * self.feed_forward) * dense + 2 * w * frames)
        if self.cross_attention:
            block += frames * 2 * (dense + w * tokens) + tokens * 2 * dense
        return frames * ((self.input_dim + self.latent_dim) * w + 2 * dense) + self.blocks * block


ABLATION = DiTConfig(**shared_fields(dpd.ABLATION), blocks=7, heads=4)
"""Parameters within 2 % of `dpd.ABLATION`."""
TINY = DiTConfig(**shared_fields(dpd.TINY), blocks=1, heads=2, feed_forward=2)


class DiTBlock(nnx.Module):
    """One transformer block."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs) -> None:
        width = config.width
        heads = config.heads
        dtype = config.dtype
        self.modulation = AdaLN(width, 6, dtype, rngs=rngs)
        self.own = Attention(width, heads, dtype, rngs=rngs)
        self.own_feed = FeedForward(width, config.feed_forward, dtype, rngs=rngs)
        self.attends_to_tokens = config.cross_attention
        if config.cross_attention:
            self.cross = Attention(width, heads, dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L W"],
        condition: Float[Array, "B L W"],
        cond: Conditioning,
        positions: np.ndarray,
    ) -> Float[Array, "B L W"]:
        """(B, L, W) to the same. condition (B, L, W) modulates, cond holds the tokens, positions (L,) of the frames."""
        scale, shift, gate, feed_scale, feed_shift, feed_gate = self.modulation(
            sharding.constrain_batch(condition)
        )
        x = sharding.constrain_batch(x)
        h = self.own.norm(x) * (1 + scale) + shift
        x = x + gate * self.own.self_branch(h[None], positions)[0]
        if self.attends_to_tokens:
            x = self.cross.cross_attend(x[None], cond, positions[None], positions)[0]
        h = self.own_feed.norm(x) * (1 + feed_scale) + feed_shift
        return x + feed_gate * self.own_feed.branch(h)


class DiT(Backbone):
    """The whole network."""

    config: DiTConfig

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        width = config.width
        dtype = config.dtype
        self.inputs = Linear(config.input_dim, width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([DiTBlock(config, rngs=rngs) for _ in range(config.blocks)])
        self.output_norm = RMSNorm(width, rngs=rngs)
        self.modulation = AdaLN(width, 2, dtype, rngs=rngs)
        self.outputs = Linear(width, config.latent_dim, kernel_init=SMALL_INIT, dtype=dtype, rngs=rngs)

    def __call__(self, noisy: Float[Array, "B L _"], cond: Conditioning) -> Float[Array, "B L D"]:
        """(B, L, `input_dim`) to (B, L, D)."""
        positions = (np.arange(noisy.shape[1]) + 0.5) / self.config.frames_per_token
        condition = cond.angles + cond.pooled[:, None]
        x = sharding.constrain_batch(self.inputs(noisy) + cond.angles) + cond.aligned
        for block in self.blocks:
            apply = partial(block, cond=cond, positions=positions)
            x = functional.rematerialised(apply, self.config.remat)(x, condition)
        scale, shift = self.modulation(condition)
        return self.outputs(self.output_norm(x) * (1 + scale) + shift)
