"""Fine paths beside the SRU: the recurrence step by step, what reaches what, and their size."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.models import denoiser, dpd, functional
from melody_jax.models.fine_path import LinearRecurrenceLayer, LocalAttention


def test_the_recurrence_is_that_of_its_formula() -> None:
    inputs, hidden, steps = 3, 4, 6
    rng, params = (
        np.random.default_rng(0),
        functional.init(LinearRecurrenceLayer, inputs, hidden, key=jax.random.key(0)),
    )
    params = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32), params)
    x = rng.normal(size=(steps, 2, inputs)).astype(np.float32)
    output = functional.bind(LinearRecurrenceLayer, inputs, hidden, params=params)(jnp.asarray(x))

    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    candidate, forget, enter, gate = np.split(x @ np.asarray(params["kernel"]), 4, axis=-1)
    bias, decay = np.asarray(params["bias"]), np.log1p(np.exp(np.asarray(params["decay"])))
    keep = np.exp(-8 * decay * sigmoid(forget + bias[0]))
    new = np.sqrt(1 - keep**2) * sigmoid(enter + bias[1]) * candidate
    expected = np.zeros_like(output)
    for half, order in ((slice(0, hidden), range(steps)), (slice(hidden, None), reversed(range(steps)))):
        state = np.zeros((2, hidden))
        for t in order:
            state = keep[t, :, half] * state + new[t, :, half]
            expected[t, :, half] = state * np.asarray(jax.nn.gelu(gate[t, :, half]))
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_a_shut_gate_has_a_gradient() -> None:
    params = functional.init(LinearRecurrenceLayer, 1, 1, key=jax.random.key(0))
    params["bias"] = jnp.array(
        [[-200.0, 0.0], [0.0, 0.0]]
    )  # the first direction's recurrence gate rounds to 0

    def loss(params: functional.Params) -> jax.Array:
        return (functional.bind(LinearRecurrenceLayer, 1, 1, params=params)(jnp.ones((4, 1, 1))) ** 2).sum()

    grads = jax.grad(loss)(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert grads["decay"][0] == 0
    assert grads["decay"][1] != 0


def test_time_constants_span_the_documented_frames() -> None:
    params = functional.init(LinearRecurrenceLayer, 3, 5, key=jax.random.key(0))
    decay = np.exp(-8 * np.log1p(np.exp(np.asarray(params["decay"]))) * 0.5)
    np.testing.assert_allclose(-1 / np.log(decay[[0, 4, 5, 9]]), [2, 100, 2, 100], rtol=1e-4)


def test_local_attention_stays_in_its_segment_and_depends_on_order() -> None:
    params = functional.init(LocalAttention, 8, 2, 2, "float32", key=jax.random.key(0))
    attend = jax.jit(lambda x: functional.bind(LocalAttention, 8, 2, 2, "float32", params=params)(x))
    x = jax.random.normal(jax.random.key(1), (6, 3, 8))
    moved = np.abs(attend(x.at[4, 1].add(1.0)) - attend(x)).max(axis=-1)
    np.testing.assert_array_equal(moved > 1e-6, np.arange(3) == 1 + np.zeros((6, 1)))
    assert np.abs(attend(x[::-1])[::-1] - attend(x)).max() > 1e-4


@pytest.mark.parametrize("fine", ["linear_recurrence", "local_attention"])
def test_they_are_as_large_as_the_sru(fine: str) -> None:
    def size(config: dpd.DPDConfig) -> int:
        return functional.count(jax.eval_shape(partial(denoiser.init, config), jax.random.key(0)))

    assert size(dataclasses.replace(dpd.ABLATION, fine=fine)) == pytest.approx(size(dpd.ABLATION), rel=0.005)
