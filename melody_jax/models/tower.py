"""What the music towers of MuLan share: pooled features of a spectrogram, and a projection to the joint space.

B batch, F mel frames, M mel bands, D width, E embedding.
"""

import jax
from flax import nnx
from jaxtyping import Array, Float

from melody_jax.models.functional import make_rngs
from melody_jax.models.layers import Linear


class Projection(nnx.Module):
    """A projection with a hidden ReLU layer, as CLAP has it."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, key: jax.Array) -> None:
        up_key, out_key = jax.random.split(key)
        self.up = Linear(inputs, hidden, rngs=make_rngs(up_key))
        self.out = Linear(hidden, outputs, role="row", rngs=make_rngs(out_key))

    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B E"]:
        """Pooled features to the joint space."""
        return self.out(jax.nn.relu(self.up(x)))


class MusicTower(nnx.Module):
    """The base of the music towers: `models/music_tower.py`, `models/ast.py`, `models/htsat.py`."""

    projection: nnx.Param | Projection
    """A matrix (D, E) or a `Projection`; MuLan sets it."""

    def __call__(self, frames: Float[Array, "B F M"]) -> Float[Array, "B D"]:
        """Spectrogram frames to pooled features, float32."""
        raise NotImplementedError
