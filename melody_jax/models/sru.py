"""Bidirectional simple recurrent units (SRU, arXiv 1709.02755), the fine path of DPD (MeLoDy, section 4.2).

One layer, one direction, with input x_t and cell c_t:

    f_t = sigmoid(Wf x_t + vf c_{t-1} + bf)         r_t = sigmoid(Wr x_t + vr c_{t-1} + br)
    c_t = f_t c_{t-1} + (1 - f_t) W x_t             h_t = r_t c_t + (1 - r_t) Ws x_t

Only f_t and c_t need the step before: all matmuls, the output gate and the projected skip are computed for every step
at once, outside the loop. Without the v terms c is a linear recurrence, which a parallel scan can run too.

Legend: T steps, N sequences, D input width, H hidden width of one direction. Time is the first axis throughout.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from melody_jax import roles
from melody_jax.errors import UserError
from melody_jax.models import functional
from melody_jax.models.functional import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class SRUConfig:
    """Shape of a stack of bidirectional SRU layers."""

    inputs: int
    """Width of the input, D."""
    hidden: int
    """Width of one direction, H; the output has 2 H channels."""
    layers: int = 2
    """Layers in the stack."""
    recurrent_weights: bool = True
    """The v terms, by which the gates see the cell; without them the recurrence is linear."""
    parallel_scan: bool = False
    """Runs a linear recurrence by `lax.associative_scan`: slower on CPUs, may win on accelerators."""

    def __post_init__(self) -> None:
        if self.parallel_scan and self.recurrent_weights:
            raise UserError(
                "parallel_scan=True needs recurrent_weights=False: with them the recurrence is not linear"
            )


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
        if config.recurrent_weights:
            self.recurrent = nnx.Param(jnp.zeros((2, 2 * config.hidden)), role=roles.WEIGHT)
            """(gate, 2 H): vf, vr."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """(T, N, D) to (T, N, 2 H)."""
        hidden = self.config.hidden
        kernel = self.kernel[...].astype(x.dtype)
        candidate, forget, gate, skip = (
            x @ kernel[:, i : i + 2 * hidden] for i in range(0, 8 * hidden, 2 * hidden)
        )
        bias = self.bias[...].astype(x.dtype)
        v = self.recurrent[...].astype(x.dtype) if self.config.recurrent_weights else None
        forget, gate = forget + bias[0], gate + bias[1]
        cells = (
            _scanned(candidate, forget)
            if self.config.parallel_scan
            else _cells(candidate, forget, None if v is None else v[0])
        )
        if v is not None:
            gate = gate + v[1] * _before(cells)
        return skip + jax.nn.sigmoid(gate) * (cells - skip)


def _scanned(candidate: jax.Array, forget: jax.Array) -> jax.Array:
    """`_cells` without v by parallel scans."""
    keep = jax.nn.sigmoid(forget)

    def compose(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]):
        return first[0] * second[0], first[1] * second[0] + second[1]

    halves = zip(
        jnp.split(keep, 2, axis=-1), jnp.split((1 - keep) * candidate, 2, axis=-1), (False, True), strict=True
    )
    both = [
        jax.lax.associative_scan(compose, (kept, new), reverse=reverse)[1] for kept, new, reverse in halves
    ]
    return jnp.concatenate(both, axis=-1)


@jax.custom_vjp
def _cells(candidate: jax.Array, forget: jax.Array, v: jax.Array | None) -> jax.Array:
    """Cells (T, N, 2 H) from the candidates, the forget gate before its v term and sigmoid, and v (2 H,) of that gate.

    The derivative is written out: going back, the recurrence is linear in the slope, so all but a product and a sum is
    done for every step at once, and v's own slope is summed once instead of at every step (over a mesh, sent once).
    """

    def step(cell: jax.Array, candidate: jax.Array, forget: jax.Array, v: jax.Array | None):
        keep = jax.nn.sigmoid(forget if v is None else forget + v * cell)
        cell = candidate + keep * (cell - candidate)
        return cell, cell

    return _sweep(step, (candidate, forget), v)


def _cells_forward(candidate: jax.Array, forget: jax.Array, v: jax.Array | None):
    cells = _cells(candidate, forget, v)
    return cells, (candidate, forget, v, cells)


def _cells_backward(saved: tuple, slope: jax.Array):
    candidate, forget, v, cells = saved
    before = _before(cells)
    keep = jax.nn.sigmoid(forget if v is None else forget + v * before)
    bend = keep * (1 - keep) * (before - candidate)  # of a cell by its gate
    passed = keep if v is None else keep + v * bend

    def step(carry: jax.Array, slope: jax.Array, passed: jax.Array, _):
        slope = slope + carry
        return passed * slope, slope

    slope = _sweep(step, (slope, passed), None, backward=True)
    to_forget = slope * bend
    return (1 - keep) * slope, to_forget, None if v is None else (to_forget * before).sum(axis=(0, 1))


_cells.defvjp(_cells_forward, _cells_backward)


def _before(cells: jax.Array) -> jax.Array:
    """The cells (T, N, 2 H) one step earlier in their direction, zero at first."""
    ahead, behind = jnp.split(cells, 2, axis=-1)
    return jnp.concatenate(
        [jnp.pad(ahead[:-1], ((1, 0), (0, 0), (0, 0))), jnp.pad(behind[1:], ((0, 1), (0, 0), (0, 0)))],
        axis=-1,
    )


def _sweep(
    step: Callable, arrays: tuple[jax.Array, ...], v: jax.Array | None, backward: bool = False
) -> jax.Array:
    """One loop for both directions: what (carry, output) = step(carry, *arrays at a time, v) puts out, (T, N, 2 H).

    The first H channels go forward in time and the last H back; with `backward` the other way round. Reading and
    writing in place costs no copy, as flipping half of the channels would.
    """
    steps, count, width = arrays[0].shape
    halves = (slice(0, width // 2), slice(width // 2, width))
    parts = [None if v is None else v[half] for half in halves]

    def body(t: jax.Array, state: tuple) -> tuple:
        carries, out = state
        times = (steps - 1 - t, t) if backward else (t, steps - 1 - t)
        after = []
        for time, half, part, carry in zip(times, halves, parts, carries, strict=True):
            now = [jax.lax.dynamic_slice(x, (time, 0, half.start), (1, count, width // 2))[0] for x in arrays]
            carry, put = step(carry, *now, part)
            after.append(carry)
            out = jax.lax.dynamic_update_slice(out, put[None], (time, 0, half.start))
        return tuple(after), out

    empty = jnp.zeros((count, width // 2), arrays[0].dtype)
    return jax.lax.fori_loop(0, steps, body, ((empty, empty), jnp.zeros_like(arrays[0])))[1]


class SRU(nnx.Module):
    """The stack: (T, N, D) -> (T, N, 2 H)."""

    def __init__(self, config: SRUConfig, *, rngs: nnx.Rngs) -> None:
        widths = [config.inputs] + [2 * config.hidden] * (config.layers - 1)
        self.layers = nnx.List([SRULayer(width, config, rngs=rngs) for width in widths])

    def __call__(self, x: jax.Array) -> jax.Array:
        """(T, N, D) to (T, N, 2 H)."""
        for layer in self.layers:
            x = layer(x)
        return x


def init(config: SRUConfig, key: jax.Array) -> Params:
    """Fresh parameters of the stack."""
    return functional.init(SRU, config, key=key)


def apply(params: Params, config: SRUConfig, x: jax.Array) -> jax.Array:
    """The stack on time-major sequences: (T, N, D) -> (T, N, 2 H)."""
    return functional.bind(SRU, config, params=params)(x)
