"""The fine path of DPD: the SRU, or an alternative of equal size, a linear recurrence or attention within a segment.

The linear recurrence is the gated one of Griffin (RG-LRU, arXiv 2402.19427), in both directions. With input x_t and
state h:

    r_t = sigmoid(Wr x_t + br)      i_t = sigmoid(Wi x_t + bi)      log a_t = -8 softplus(L) r_t
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t W x_t                   y_t = h_t gelu(Wg x_t)

The gates depend on the input only, so a parallel scan computes all steps in log2 K rounds. Its four matrices are as
large as the SRU's.

Local attention is a stack of pre-norm residual self-attention layers with rotary positions. Segments overlap by half,
so information crosses into the next segment with every block.

Legend: T steps, N sequences, D input width, H width of one direction. Time is the first axis throughout.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from melody_jax import roles
from melody_jax.models.products import product
from melody_jax.models.roformer import Attention
from melody_jax.models.sru import SRU, SRUConfig
from melody_jax.sharding import gather_kernel

FinePath = Literal["sru", "linear_recurrence", "local_attention"]
SHARPNESS = 8.0
"""The constant c of Griffin: how much the recurrence gate can shorten the memory."""
MEMORY = (2.0, 100.0)
"""Shortest and longest time constant at initialisation: frames until a state decays to 1 / e with a half-open gate."""


class LinearRecurrenceLayer(nnx.Module):
    """Both directions of one layer: (T, N, D) -> (T, N, 2 H), forward channels first."""

    def __init__(self, inputs: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(
            nnx.initializers.lecun_normal()(rngs.params(), (inputs, 8 * hidden)), role=roles.COLUMN
        )
        """(D, 8 H): candidate, recurrence gate, input gate, output gate, each for both directions."""
        self.bias = nnx.Param(jnp.zeros((2, 2 * hidden)), role=roles.BIAS)
        """(gate, 2 H): recurrence gate, input gate."""
        frames = np.tile(np.geomspace(*MEMORY, hidden), 2)
        decay = np.log(np.expm1(2 / (SHARPNESS * frames)))
        self.decay = nnx.Param(jnp.asarray(decay, jnp.float32), role=roles.VECTOR)
        """(2 H,) L: softplus(L) = 2 / (8 frames) gives a_t = exp(-1 / frames) where r_t is a half."""

    def __call__(self, x: Float[Array, "T N D"]) -> Float[Array, "T N _"]:
        """(T, N, D) to (T, N, 2 H)."""
        bias = self.bias[...]
        kernel = gather_kernel(self.kernel[...].astype(x.dtype), roles.COLUMN)
        candidate, forget, enter, gate = jnp.split(product(x, kernel), 4, axis=-1)
        forget = jax.nn.sigmoid(forget.astype(jnp.float32) + bias[0])
        enter = jax.nn.sigmoid(enter.astype(jnp.float32) + bias[1])
        log_decay = -SHARPNESS * jax.nn.softplus(self.decay[...]) * forget
        update = _root(-jnp.expm1(2 * log_decay)) * enter * candidate
        forward_decay, backward_decay = jnp.split(jnp.exp(log_decay), 2, axis=-1)
        forward_update, backward_update = jnp.split(update, 2, axis=-1)
        states = [
            _scan(forward_decay, forward_update, reverse=False),
            _scan(backward_decay, backward_update, reverse=True),
        ]
        return jnp.concatenate(states, axis=-1).astype(x.dtype) * jax.nn.gelu(gate)


def _root(x: Array) -> Array:
    """sqrt(x) for x >= 0 with gradient 0 at 0; the chain rule would give 0 times infinity where a gate rounds to 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _scan(decay: Array, update: Array, reverse: bool) -> Array:
    """h_t = decay_t h_{t-1} + update_t along the first axis, from 0."""

    def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] * second[0], first[1] * second[0] + second[1]

    return jax.lax.associative_scan(compose, (decay, update), reverse=reverse)[1]


class LinearRecurrence(nnx.Module):
    """The stack: (T, N, D) -> (T, N, 2 H)."""

    def __init__(self, inputs: int, hidden: int, layers: int, *, rngs: nnx.Rngs) -> None:
        widths = [inputs] + [2 * hidden] * (layers - 1)
        self.layers = nnx.List([LinearRecurrenceLayer(width, hidden, rngs=rngs) for width in widths])

    def __call__(self, x: Float[Array, "T N D"]) -> Float[Array, "T N _"]:
        """(T, N, D) to (T, N, 2 H)."""
        for layer in self.layers:
            x = layer(x)
        return x


class LocalAttention(nnx.Module):
    """The stack: (T, N, D) -> (T, N, D)."""

    def __init__(self, width: int, heads: int, layers: int, dtype: str, *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([Attention(width, heads, dtype, rngs=rngs) for _ in range(layers)])

    def __call__(self, x: Float[Array, "T N D"]) -> Float[Array, "T N D"]:
        """(T, N, D) to the same."""
        rows = x.swapaxes(0, 1)[None]
        for layer in self.layers:
            rows = layer.self_attend(rows, np.arange(len(x)))
        return rows[0].swapaxes(0, 1)


def make_fine_path(
    kind: FinePath, width: int, heads: int, hidden: int, layers: int, dtype: str, rngs: nnx.Rngs
) -> LocalAttention | LinearRecurrence | SRU:
    """The fine path of a block: (T, N, `width`) to (T, N, 2 `hidden`); attention to (T, N, `width`)."""
    if kind == "local_attention":
        return LocalAttention(width, heads, layers, dtype, rngs=rngs)
    if kind == "linear_recurrence":
        return LinearRecurrence(width, hidden, layers, rngs=rngs)
    return SRU(SRUConfig(inputs=width, hidden=hidden, layers=layers), rngs=rngs)
