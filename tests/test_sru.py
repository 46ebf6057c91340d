"""melody_jax/models/sru.py against the equations as a plain loop."""

import jax
import numpy as np

from melody_jax.models import sru
from melody_jax.models.sru import SRUConfig


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain_direction(x, w, bias, v, reverse):
    """One direction of one layer: x (T, N, D), w (4, D, H), bias and v (2, H)."""
    hidden = np.zeros((*x.shape[:2], w.shape[-1]))
    cell = np.zeros_like(hidden[0])
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        forget = sigmoid(x[t] @ w[1] + v[0] * cell + bias[0])
        gate = sigmoid(x[t] @ w[2] + v[1] * cell + bias[1])
        cell = forget * cell + (1 - forget) * (x[t] @ w[0])
        hidden[t] = gate * cell + (1 - gate) * (x[t] @ w[3])
    return hidden


def plain(params, config, x):
    width = config.hidden
    for index in range(config.layers):
        layer = {name: np.asarray(leaf, np.float64) for name, leaf in params["layers"][str(index)].items()}
        kernel = layer["kernel"].reshape(-1, 4, 2, width).transpose(2, 1, 0, 3)
        bias = layer["bias"].reshape(2, 2, width).transpose(1, 0, 2)
        v = layer["recurrent"].reshape(2, 2, width).transpose(1, 0, 2)
        x = np.concatenate([plain_direction(x, kernel[d], bias[d], v[d], d == 1) for d in (0, 1)], axis=-1)
    return x


def setup(**fields):
    config = SRUConfig(inputs=6, hidden=5, **fields)
    params = sru.init(config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(
        jax.random.key(1), len(leaves)
    )  # biases and v start at zero, which would hide mistakes
    leaves = [leaf + 0.5 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return config, jax.tree.unflatten(tree, leaves), jax.random.normal(jax.random.key(2), (7, 3, 6))


def test_two_layers_both_directions_equal_the_plain_loop():
    config, params, x = setup()
    result = jax.jit(lambda p, x: sru.apply(p, config, x))(params, x)
    assert result.shape == (7, 3, 10)
    np.testing.assert_allclose(result, plain(params, config, np.asarray(x, np.float64)), atol=2e-6)


def test_written_out_derivative_equals_the_automatic_one():
    config, params, x = setup()
    jnp = jax.numpy

    def direction(x, w, bias, v, reverse):
        def step(cell, x):
            forget = jax.nn.sigmoid(x @ w[1] + v[0] * cell + bias[0])
            gate = jax.nn.sigmoid(x @ w[2] + v[1] * cell + bias[1])
            cell = forget * cell + (1 - forget) * (x @ w[0])
            return cell, gate * cell + (1 - gate) * (x @ w[3])

        return jax.lax.scan(step, jnp.zeros((x.shape[1], w.shape[-1])), x, reverse=reverse)[1]

    def automatic(params, x):
        for index in range(config.layers):
            layer = params["layers"][str(index)]
            w = layer["kernel"].reshape(-1, 4, 2, 5).transpose(2, 1, 0, 3)
            bias, v = (layer[name].reshape(2, 2, 5).swapaxes(0, 1) for name in ("bias", "recurrent"))
            x = jnp.concatenate([direction(x, w[d], bias[d], v[d], d == 1) for d in (0, 1)], axis=-1)
        return x

    slope = jax.random.normal(jax.random.key(3), (7, 3, 10))
    ours, theirs = (
        jax.jit(jax.grad(lambda p, x, f=f: (f(p, x) * slope).sum(), argnums=(0, 1)))(params, x)
        for f in (lambda p, x: sru.apply(p, config, x), automatic)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_directions_see_one_side_each():
    config, params, x = setup(layers=1)
    base, changed = (np.asarray(sru.apply(params, config, y)) for y in (x, x.at[3].add(1.0)))
    moved = (np.abs(changed - base) > 1e-7).any(axis=1)
    assert not moved[:3, :5].any()
    assert moved[3:, :5].any(axis=1).all()
    assert not moved[4:, 5:].any()
    assert moved[:4, 5:].any(axis=1).all()


def test_cells_of_long_memory_are_exact_to_half_a_percent_in_bfloat16():
    """64 steps at a forget bias of 4, where a bfloat16 cell would keep little of what each step adds."""
    jnp = jax.numpy
    rng = np.random.default_rng(0)
    candidate = jnp.asarray(rng.normal(size=(64, 4, 32)), jnp.bfloat16)
    forget = jnp.full((64, 4, 32), 4.0)
    reference = sru._cells(candidate.astype(jnp.float32), forget, jnp.zeros(32))
    cells = sru._cells(candidate, forget, jnp.zeros(32))
    assert cells.dtype == jnp.bfloat16
    error = np.linalg.norm(cells.astype(jnp.float32) - reference) / np.linalg.norm(reference)
    assert error < 0.005


def test_gradients_in_bfloat16_are_those_of_float32():
    config, params, x = setup()
    jnp = jax.numpy

    def loss(params, x):
        return (sru.apply(params, config, x).astype(jnp.float32) ** 2).sum()

    exact = jax.grad(loss)(params, x.astype(jnp.bfloat16).astype(jnp.float32))
    rounded = jax.grad(loss)(params, x.astype(jnp.bfloat16))
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert b.dtype == jnp.float32
        assert np.linalg.norm(a - b) < 0.03 * np.linalg.norm(a)
