"""How the conditioning modulates a backbone: by one vector per segment (FiLM), or per frame (AdaLN).

Legend: B batch, L latent frames, K frames in a segment, S segments, W width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from melody_jax.models.conditioning import MLP
from melody_jax.models.layers import Linear, RMSNorm
from melody_jax.models.roformer import BRANCH_GAIN


class FiLM(nnx.Module):
    """MLP(x MLP(m) + MLP(m)) of a sheet x (K, B, S, W) by one vector per segment, m (B, S, W), as in MeLoDy (arXiv
    2305.15719, section 4.1); only a norm of x unless `modulates`."""

    def __init__(self, width: int, modulates: bool, dtype: str, *, rngs: nnx.Rngs) -> None:
        self.modulates = modulates
        if modulates:
            self.scale = MLP(width, width, dtype, rngs=rngs)
            self.shift = MLP(width, width, dtype, rngs=rngs)
            self.out = MLP(width, width, dtype, BRANCH_GAIN, rngs=rngs)
        else:
            self.out = RMSNorm(width, BRANCH_GAIN, rngs=rngs)

    def __call__(self, x: Float[Array, "K B S W"], m: Float[Array, "B S W"]) -> Float[Array, "K B S W"]:
        """(K, B, S, W) modulated by (B, S, W)."""
        return self.out(x * self.scale(m) + self.shift(m) if self.modulates else x)


class AdaLN(nnx.Module):
    """`parts` vectors (B, L, W) from the condition (B, L, W), zero at initialisation (DiT, arXiv 2212.09748)."""

    def __init__(self, width: int, parts: int, dtype: str, *, rngs: nnx.Rngs) -> None:
        zeros = nnx.initializers.zeros
        self.parts = parts
        self.out = Linear(width, parts * width, role="row", kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, condition: Float[Array, "B L W"]) -> list[Float[Array, "B L W"]]:
        """(B, L, W) to `parts` arrays (B, L, W)."""
        return jnp.split(self.out(jax.nn.silu(condition)), self.parts, axis=-1)
