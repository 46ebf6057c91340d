"""Bidirectional simple recurrent units (SRU, arXiv 1709.02755), the fine path of DPD (MeLoDy, arXiv 2305.15719,
section 4.1).

One layer, one direction, with input x_t and cell c_t:

    f_t = sigmoid(Wf x_t + vf c_{t-1} + bf)         r_t = sigmoid(Wr x_t + vr c_{t-1} + br)
    c_t = f_t c_{t-1} + (1 - f_t) W x_t             h_t = r_t c_t + (1 - r_t) Ws x_t

Only f_t and c_t depend on the step before: all matrix products, the output gate and the projected skip are computed for
every step at once, outside the loop. Cells are carried, and gates computed, in float32 for every compute dtype: with a
forget gate near 1, a cell that is rounded at every step loses what it gains.

Legend: T steps, N sequences, D input width, H hidden width of one direction. Time is the first axis throughout.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from melody_jax import roles
from melody_jax.models import functional
from melody_jax.models.functional import Params
from melody_jax.models.products import product
from melody_jax.sharding import gather_kernel


@dataclasses.dataclass(frozen=True, kw_only=True)
class SRUConfig:
    """Shape of a stack of bidirectional SRU layers."""

    inputs: int
    """Width of the input, D."""
    hidden: int
    """Width of one direction, H; the output has 2 H channels."""
    layers: int = 2
    """Layers in the stack."""


class SRULayer(nnx.Module):
    """Both directions of one layer: (T, N, D) -> (T, N, 2 H), forward channels first."""

    def __init__(self, inputs: int, config: SRUConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.kernel = nnx.Param(
            nnx.initializers.lecun_normal()(rngs.params(), (inputs, 8 * config.hidden)), role=roles.COLUMN
        )
        """(D, 8 H): candidate, forget gate, output gate, skip, each for both directions."""
        self.bias = nnx.Param(jnp.zeros((2, 2 * config.hidden)), role=roles.BIAS)
        """(gate, 2 H): forget gate, output gate."""
        self.recurrent = nnx.Param(jnp.zeros((2, 2 * config.hidden)), role=roles.WEIGHT)
        """(gate, 2 H): vf, vr."""

    def __call__(self, x: Float[Array, "T N D"]) -> Float[Array, "T N _"]:
        """(T, N, D) to (T, N, 2 H)."""
        hidden = self.config.hidden
        kernel = gather_kernel(self.kernel[...].astype(x.dtype), roles.COLUMN)
        candidate, forget, gate, skip = (
            product(x, kernel[:, i : i + 2 * hidden]) for i in range(0, 8 * hidden, 2 * hidden)
        )
        bias = self.bias[...]
        v = self.recurrent[...]
        cells = _cells(candidate, forget.astype(jnp.float32) + bias[0], v[0])
        gate = gate.astype(jnp.float32) + bias[1] + v[1] * _previous(cells)
        return (skip + jax.nn.sigmoid(gate) * (cells - skip)).astype(x.dtype)


@jax.custom_vjp
def _cells(candidate: Array, forget: Array, v: Array) -> Array:
    """Cells (T, N, 2 H) from the candidates, the forget gate before its v term and sigmoid, and v (2 H,) of that gate.

    Cells are stored in the dtype of the candidates; the gate and v are float32.

    The derivative is written out: backward, the recurrence is linear in the cotangent, so everything but one product
    and one sum runs for every step at once, and v's gradient is summed once instead of at every step (one collective
    over a mesh).
    """

    def step(cell: Array, candidate: Array, forget: Array, v: Array) -> tuple[Array, Array]:
        gate = jax.nn.sigmoid(forget + v * cell)
        cell = candidate + gate * (cell - candidate)
        return cell, cell

    return _bidirectional_loop(step, (candidate, forget), v)


def _cells_forward(
    candidate: Array, forget: Array, v: Array
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    cells = _cells(candidate, forget, v)
    return cells, (candidate, forget, v, cells)


def _cells_backward(
    residuals: tuple[Array, Array, Array, Array], d_cells: Array
) -> tuple[Array, Array, Array]:
    candidate, forget, v, cells = residuals
    previous = _previous(cells)
    gate = jax.nn.sigmoid(forget + v * previous)
    d_preactivation = gate * (1 - gate) * (previous - candidate)  # of a cell by its gate before the sigmoid
    d_previous = gate + v * d_preactivation  # of a cell by the cell before

    def step(carry: Array, d_cell: Array, d_previous: Array, v: None) -> tuple[Array, Array]:
        d_cell = d_cell + carry
        return d_previous * d_cell, d_cell

    d_cells = _bidirectional_loop(step, (d_cells, d_previous), None, backward=True)
    d_forget = d_cells * d_preactivation
    d_candidate = ((1 - gate) * d_cells).astype(candidate.dtype)
    return d_candidate, d_forget, (d_forget * previous).sum(axis=(0, 1))


_cells.defvjp(_cells_forward, _cells_backward)


def _previous(cells: Array) -> Array:
    """The cells (T, N, 2 H) one step earlier in their direction, zero before the first."""
    forward, backward = jnp.split(cells, 2, axis=-1)
    forward = jnp.pad(forward[:-1], ((1, 0), (0, 0), (0, 0)))
    backward = jnp.pad(backward[1:], ((0, 1), (0, 0), (0, 0)))
    return jnp.concatenate([forward, backward], axis=-1)


def _bidirectional_loop(
    step: Callable[..., tuple[Array, Array]],
    arrays: tuple[Array, ...],
    v: Array | None,
    backward: bool = False,
) -> Array:
    """One loop for both directions: (carry, output) = step(carry, *arrays at a time, v); returns outputs (T, N, 2 H).

    The first H channels run forward in time and the last H backward; with `backward` the other way round. The carry is
    float32, outputs have the dtype of the first array. Reading and writing in place avoids the copy that flipping half
    of the channels would cost.
    """
    steps, count, width = arrays[0].shape
    half = width // 2
    directions = ((0, None if v is None else v[:half]), (half, None if v is None else v[half:]))

    def body(t: Array, state: tuple[tuple[Array, Array], Array]) -> tuple[tuple[Array, Array], Array]:
        carries, outputs = state
        times = (steps - 1 - t, t) if backward else (t, steps - 1 - t)
        next_carries = []
        for time, (channel, weight), carry in zip(times, directions, carries, strict=True):
            inputs = [jax.lax.dynamic_slice(x, (time, 0, channel), (1, count, half))[0] for x in arrays]
            carry, output = step(carry, *inputs, weight)
            next_carries.append(carry)
            output = output[None].astype(outputs.dtype)
            outputs = jax.lax.dynamic_update_slice(outputs, output, (time, 0, channel))
        return (next_carries[0], next_carries[1]), outputs

    zeros = jnp.zeros((count, half), jnp.float32)
    return jax.lax.fori_loop(0, steps, body, ((zeros, zeros), jnp.zeros_like(arrays[0])))[1]


class SRU(nnx.Module):
    """The stack: (T, N, D) -> (T, N, 2 H)."""

    def __init__(self, config: SRUConfig, *, rngs: nnx.Rngs) -> None:
        widths = [config.inputs] + [2 * config.hidden] * (config.layers - 1)
        self.layers = nnx.List([SRULayer(width, config, rngs=rngs) for width in widths])

    def __call__(self, x: Float[Array, "T N D"]) -> Float[Array, "T N _"]:
        """(T, N, D) to (T, N, 2 H)."""
        for layer in self.layers:
            x = layer(x)
        return x


def init(config: SRUConfig, key: PRNGKeyArray) -> Params:
    """Fresh parameters of the stack."""
    return functional.init(SRU, config, key=key)


def apply(params: Params, config: SRUConfig, x: Float[Array, "T N D"]) -> Float[Array, "T N _"]:
    """The stack on time-major sequences: (T, N, D) -> (T, N, 2 H)."""
    return functional.bind(SRU, config, params=params)(x)
