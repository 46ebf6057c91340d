"""What classifiers of a tempo learn: soft classes around that of a piece."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def tempo_target(
    tempo: Float[Array, " B"], slowest: float, fastest: float, classes: int
) -> Float[Array, "B _"]:
    """Probabilities (B, classes) of tempi (B,) in bpm: a normal distribution, a class wide, over classes that rise by
    equal factors from `slowest` to `fastest`. The row of a missing tempo (nan) is finite, for masking."""
    octaves = np.log2(fastest / slowest)
    share = jnp.log2(jnp.where(jnp.isfinite(tempo), tempo, slowest) / slowest) / octaves
    position = jnp.clip(share, 0.0, 1.0) * (classes - 1)
    return jax.nn.softmax(-0.5 * (position[:, None] - jnp.arange(classes)) ** 2, axis=-1)
