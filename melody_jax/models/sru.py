"""Bidirectional simple recurrent units (SRU, arXiv 1709.02755), the fine path of DPD (MeLoDy, section 4.2).

One layer, one direction, with input x_t and cell c_t:

    f_t = sigmoid(Wf x_t + vf c_{t-1} + bf)         r_t = sigmoid(Wr x_t + vr c_{t-1} + br)
    c_t = f_t c_{t-1} + (1 - f_t) W x_t             h_t = r_t c_t + (1 - r_t) Ws x_t

Only f_t and c_t need the step before: all matmuls, the output gate and the projected skip are computed for every step
at once, outside the loop. Without the v terms c is a linear recurrence, which a parallel scan can run too.

Legend: T steps, N sequences, D input width, H hidden width of one direction. Time is the first axis throughout.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

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
            raise UserError("parallel_scan=True needs recurrent_weights=False: with them the recurrence is not linear")


class SRULayer(nnx.Module):
    """Both directions of one layer: (T, N, D) -> (T, N, 2 H), forward channels first."""

    def __init__(self, inputs: int, config: SRUConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (inputs, 8 * config.hidden)))
        """(D, 8 H): candidate, forget gate, output gate, skip, each for both directions."""
        self.bias = nnx.Param(jnp.zeros((2, 2 * config.hidden)))
        """(gate, 2 H): forget gate, output gate."""
        if config.recurrent_weights:
            self.recurrent = nnx.Param(jnp.zeros((2, 2 * config.hidden)))
            """(gate, 2 H): vf, vr."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """(T, N, D) to (T, N, 2 H)."""
        hidden = self.config.hidden
        kernel = self.kernel[...].astype(x.dtype)
        candidate, forget, gate, skip = (x @ kernel[:, i : i + 2 * hidden] for i in range(0, 8 * hidden, 2 * hidden))
        bias = self.bias[...].astype(x.dtype)
        v = self.recurrent[...].astype(x.dtype) if self.config.recurrent_weights else None
        forget, gate = forget + bias[0], gate + bias[1]
        # A loop a direction: flipping the inputs to run both in one costs more in copies than the second loop does.
        ahead, behind = (
            self._cells(candidate[..., half], forget[..., half], None if v is None else v[0, half], reverse)
            for half, reverse in ((slice(hidden), False), (slice(hidden, None), True))
        )
        if v is not None:
            before = [
                jnp.pad(ahead[:-1], ((1, 0), (0, 0), (0, 0))),
                jnp.pad(behind[1:], ((0, 1), (0, 0), (0, 0))),
            ]
            gate = gate + v[1] * jnp.concatenate(before, axis=-1)
        return skip + jax.nn.sigmoid(gate) * (jnp.concatenate([ahead, behind], axis=-1) - skip)

    def _cells(self, candidate: jax.Array, forget: jax.Array, v: jax.Array | None, reverse: bool) -> jax.Array:
        """Cells (T, N, H) from the candidates, the forget gate before its v term and sigmoid, and v of the gate."""
        if self.config.parallel_scan:
            keep = jax.nn.sigmoid(forget)

            def compose(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]):
                return first[0] * second[0], first[1] * second[0] + second[1]

            return jax.lax.associative_scan(compose, (keep, (1 - keep) * candidate), reverse=reverse)[1]

        def step(cell: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            candidate, forget = inputs
            keep = jax.nn.sigmoid(forget if v is None else forget + v * cell)
            cell = candidate + keep * (cell - candidate)
            return cell, cell

        return jax.lax.scan(step, jnp.zeros_like(candidate[0]), (candidate, forget), reverse=reverse)[1]


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
