"""The optimisers: which leaves are whose, and what a step does to them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from melody_jax.config import OptimizerConfig
from melody_jax.roles import Role
from melody_jax.training.state import make_optimizer

SHAPES = {
    "model": {
        "blocks": {"up": {"kernel": (3, 16, 24), "bias": (3, 24)}},  # stacked
        "layers": {"blocks": {"0": {"out": {"kernel": (24, 16)}}}},  # one by one
        "conv": {"kernel": (5, 4, 16)},
        "head": (16, 8),
        "norm": {"scale": (16,)},
    },
    "heads": {"genre": {"kernel": (16, 8)}},
}
ROLES = {
    "model": {
        "blocks": {"up": {"kernel": Role("column", stacked=True), "bias": Role("bias", stacked=True)}},
        "layers": {"blocks": {"0": {"out": {"kernel": Role("row")}}}},
        "conv": {"kernel": Role("conv")},
        "head": Role("head"),
        "norm": {"scale": Role("norm")},
    },
    "heads": {"genre": {"kernel": Role("head")}},
}


def first_update(config: OptimizerConfig) -> Any:
    """What the first step adds to parameters that are 0, for random gradients."""
    keys = iter(jax.random.split(jax.random.key(0), 9))
    gradients = jax.tree.map(
        lambda shape: jax.random.normal(next(keys), shape), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )
    params = jax.tree.map(jnp.zeros_like, gradients)
    optimizer = make_optimizer(config, 10, ROLES)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    return {**gradients["model"], **gradients["heads"]}, {**updates["model"], **updates["heads"]}


def test_muon_orthogonalises_every_kernel_and_leaves_the_rest_to_adam() -> None:
    muon = OptimizerConfig(muon=True, learning_rate=0.1, warmup_steps=0, clip_norm=1e9)
    gradients, updates = first_update(muon)
    kernels = [*updates["blocks"]["up"]["kernel"], updates["layers"]["blocks"]["0"]["out"]["kernel"]]
    kernels.append(updates["conv"]["kernel"].reshape(-1, 16))
    for kernel in kernels:
        values = jnp.linalg.svd(kernel, compute_uv=False) / (0.1 * 0.2 * max(kernel.shape) ** 0.5)
        assert 0.6 < values.min() <= values.max() < 1.3  # five Newton-Schulz steps come that near to 1
    for pick in (
        lambda tree: tree["head"],
        lambda tree: tree["norm"]["scale"],
        lambda tree: tree["genre"]["kernel"],
    ):
        step = 0.1 * 0.28 / 0.19  # Nesterov's look ahead, beta1 0.9
        np.testing.assert_allclose(pick(updates), -step * jnp.sign(pick(gradients)), rtol=1e-3)


def test_adamw_moves_every_leaf_by_the_rate() -> None:
    gradients, updates = first_update(OptimizerConfig(learning_rate=0.1, warmup_steps=0, clip_norm=1e9))
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, -0.1 * jnp.sign(g), rtol=1e-3), updates, gradients
    )


@pytest.mark.parametrize("muon", [False, True])
def test_decay_spares_vectors(muon: bool) -> None:
    """With gradients of 0, layers' matrices shrink by rate times decay, gains and biases stay."""
    params = jax.tree.map(jnp.ones, SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    config = OptimizerConfig(muon=muon, learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    optimizer = make_optimizer(config, 10, ROLES)
    updates, _ = jax.jit(optimizer.update)(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    after = optax.apply_updates(params, updates)["model"]
    np.testing.assert_allclose(after["blocks"]["up"]["kernel"], 0.95, rtol=1e-5)
    np.testing.assert_allclose(after["conv"]["kernel"], 0.95, rtol=1e-5)
    np.testing.assert_allclose(after["head"], 1.0 if muon else 0.95, rtol=1e-5)
    np.testing.assert_array_equal(after["blocks"]["up"]["bias"], 1.0)
    np.testing.assert_array_equal(after["norm"]["scale"], 1.0)
