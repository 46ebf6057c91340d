"""A diffusion transformer over latent frames (DiT, arXiv 2212.09748) with cross-attention to the semantic tokens.

    H = z W_in + E_angle + E_aligned
    a block:   H = H + g1 Attention(modulated norm of H);  H = H + CrossAttention(norm of H)
               H = H + g2 FeedForward(modulated norm of H)
    v = (modulated norm of H) W_out

Scale, shift and gate g of each frame come from its own angle and the pooled condition, and are zero at first
(AdaLN-zero), so that every block starts as the identity but for a faint cross-attention. Positions are rotary, on the
clock of the tokens. Without a condition cross-attention turns to the frames themselves, as in DPD.

Legend: B batch, L latent frames, D latent width, W width, U semantic tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from melody_jax import sharding
from melody_jax.errors import UserError
from melody_jax.models import dpd, functional
from melody_jax.models.conditioning import SMALL_INIT, Conditioned, Conditions, DenoiserConfig, shared_fields
from melody_jax.models.layers import Linear, RMSNorm
from melody_jax.models.roformer import Attention, Condition, FeedForward


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig(DenoiserConfig):
    """Shape of the network. The defaults are DiT-L's depth at the width of the paper's DPD."""

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
                f"width {self.width} in {self.heads} heads: rotary positions need an even width a head"
            )

    def products(self, frames: int) -> int:
        """See `DenoiserConfig.products`."""
        w, tokens = self.width, self.tokens(frames)
        dense = w * w
        block = frames * ((10 + 2 * self.feed_forward) * dense + 2 * w * frames)
        if self.cross_attention:
            block += frames * 2 * (dense + w * tokens) + tokens * 2 * dense
        return frames * 2 * (self.latent_dim * w + dense) + self.blocks * block


ABLATION = DiTConfig(**shared_fields(dpd.ABLATION), blocks=7, heads=4)
"""As many parameters as `dpd.ABLATION`, within 2 %."""
TINY = DiTConfig(**shared_fields(dpd.TINY), blocks=1, heads=2, feed_forward=2)


class Modulation(nnx.Module):
    """`parts` vectors (B, L, W) of the condition (B, L, W), zero at first."""

    def __init__(self, width: int, parts: int, dtype: str, *, rngs: nnx.Rngs) -> None:
        zeros = nnx.initializers.zeros
        self.parts = parts
        self.out = Linear(width, parts * width, role="row", kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, condition: jax.Array) -> list[jax.Array]:
        """(B, L, W) to so many (B, L, W)."""
        return jnp.split(self.out(jax.nn.silu(condition)), self.parts, axis=-1)


class Block(nnx.Module):
    """One block."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs) -> None:
        width, heads, dtype = config.width, config.heads, config.dtype
        self.modulation = Modulation(width, 6, dtype, rngs=rngs)
        self.own = Attention(width, heads, dtype, rngs=rngs)
        self.own_feed = FeedForward(width, config.feed_forward, dtype, rngs=rngs)
        self.attends_to_tokens = config.cross_attention
        if config.cross_attention:
            self.cross = Attention(width, heads, dtype, rngs=rngs)

    def __call__(self, x: jax.Array, condition: jax.Array, context: Condition) -> jax.Array:
        """(B, L, W) to the same; condition (B, L, W)."""
        scale, shift, gate, feed_scale, feed_shift, feed_gate = self.modulation(
            sharding.constrain_batch(condition)
        )
        x = sharding.constrain_batch(x)
        clock = context.segment_clock
        h = self.own.norm(x) * (1 + scale) + shift
        x = x + gate * self.own.of_itself(h[None], clock)[0]
        if self.attends_to_tokens:
            x = self.cross.across(x[None], clock[None], context)[0]
        h = self.own_feed.norm(x) * (1 + feed_scale) + feed_shift
        return x + feed_gate * self.own_feed.of_normed(h)


class DiT(Conditioned):
    """The whole network."""

    config: DiTConfig

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        width, dtype = config.width, config.dtype
        self.inputs = Linear(config.latent_dim, width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.blocks)])
        self.output_norm = RMSNorm(width, rngs=rngs)
        self.modulation = Modulation(width, 2, dtype, rngs=rngs)
        self.outputs = Linear(width, config.latent_dim, kernel_init=SMALL_INIT, dtype=dtype, rngs=rngs)

    def __call__(self, noisy: jax.Array, told: Conditions) -> jax.Array:
        """(B, L, D) to (B, L, D)."""
        clock = (np.arange(noisy.shape[1]) + 0.5) / self.config.frames_per_token
        context = Condition(told.tokens, told.conditioned, told.clock, clock)
        condition = told.angles + told.pooled[:, None]
        x = sharding.constrain_batch(self.inputs(noisy) + told.angles) + told.aligned
        for block in self.blocks:
            apply = lambda x, condition, block=block: block(x, condition, context)  # noqa: E731
            x = functional.rematerialised(apply, self.config.remat)(x, condition)
        scale, shift = self.modulation(condition)
        return self.outputs(self.output_norm(x) * (1 + scale) + shift)
