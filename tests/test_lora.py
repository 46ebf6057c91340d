"""Adapters: where they sit, what they add, how their gradients come about."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import assert_same
from helpers.toy import ToyBatches, ToyStage, toy_config

from melody_jax.config import LoRAConfig, load_config
from melody_jax.errors import UserError
from melody_jax.models.functional import count
from melody_jax.release import flatten
from melody_jax.roles import BIAS, COLUMN, ROW, Role
from melody_jax.sharding import parameter_spec
from melody_jax.training.lora import adapted, adapter_roles, init_adapters, merge

CONFIGS = Path(__file__).parents[1] / "configs"
CONFIG = LoRAConfig(rank=2, alpha=3.0, kernels="kernel$")
MODEL = {
    "blocks": {"qkv": {"kernel": jnp.ones((3, 4, 6))}},
    "layers": {"blocks": {"0": {"out": {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)}}}},
}
ROLES = {
    "blocks": {"qkv": {"kernel": Role("column", stacked=True)}},
    "layers": {"blocks": {"0": {"out": {"kernel": ROW, "bias": BIAS}}}},
}


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flatten(tree).items()}


def test_every_matrix_of_a_stack_has_its_own() -> None:
    adapters = init_adapters(MODEL, ROLES, CONFIG, jax.random.key(0))
    assert shapes(adapters) == {
        "blocks/qkv/kernel/lora_a": (3, 4, 2),
        "blocks/qkv/kernel/lora_b": (3, 2, 6),
        "layers/blocks/0/out/kernel/lora_a": (6, 2),
        "layers/blocks/0/out/kernel/lora_b": (2, 4),
    }
    assert_same(merge(MODEL, adapters, CONFIG), MODEL)  # before training, bit for bit
    adapters["blocks"]["qkv"]["kernel"]["lora_b"] = jnp.ones((3, 2, 6))
    merged = merge(MODEL, adapters, CONFIG)
    for i, a in enumerate(adapters["blocks"]["qkv"]["kernel"]["lora_a"]):
        np.testing.assert_allclose(
            merged["blocks"]["qkv"]["kernel"][i], 1 + 1.5 * (a @ np.ones((2, 6))), rtol=1e-6
        )
    assert_same(merged["layers"], MODEL["layers"])


@pytest.mark.parametrize(
    ("stage", "per_block", "names"),
    [
        (
            load_config(CONFIGS / "lm_mini.py").stage,
            4 / 5,
            {"qkv", "out", "gate_up", "down"},
        ),  # stacked: 5 in one
        # ten in a layer of the coarse path; where the fine path has attention too, six there
        (load_config(CONFIGS / "dpd_paper.py").stage, 20, {"query", "key_value", "out", "hidden"}),
        (load_config(CONFIGS / "dpd_mini.py").stage, 16, {"query", "key_value", "out", "hidden"}),
        (load_config(CONFIGS / "lm_paper.py").stage, 4 / 24, {"qkv", "out", "gate_up", "down"}),
    ],
)
def test_attention_and_feed_forward_have_them(stage: Any, per_block: float, names: set[str]) -> None:
    params = jax.eval_shape(adapted(stage, LoRAConfig(rank=8)).init, jax.random.key(0))
    kernels = {path.rpartition("/")[0] for path in flatten(params["model"])}
    assert {path.split("/")[-2] for path in kernels} == names
    blocks = getattr(stage.model, "layers", None) or stage.model.blocks
    assert len(kernels) == round(per_block * blocks)
    assert not any("film" in path or "modulation" in path for path in kernels)
    assert count(params["model"]) < 0.12 * count(params["base"])


def test_gradients_are_those_of_the_merged_network() -> None:
    """Against differentiating the loss of the merged network; the base has none, other parts keep theirs."""
    config = dataclasses.replace(CONFIG, kernels="dense/kernel")
    stage = ToyStage(noise=0.0)
    params = adapted(stage, config).init(jax.random.key(0))
    params["model"] = jax.tree.map(lambda leaf: leaf + 0.1, params["model"])
    batch, key, step = next(ToyBatches()), jax.random.key(1), jnp.int32(0)
    grads, metrics = adapted(stage, config).gradients(params, batch, key, step)

    def loss(adapters: Any) -> jax.Array:
        whole = {"model": merge(params["base"], adapters, config), "discriminator": params["discriminator"]}
        return stage.gradients(whole, batch, key, step)[1]["loss"]

    expected = jax.grad(loss)(params["model"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads["model"], expected
    )
    assert set(grads) == {"model", "discriminator"}
    evaluated = adapted(stage, config).evaluate(params, batch, key)
    np.testing.assert_allclose(evaluated["loss"], metrics["loss"], rtol=1e-6)


def test_rank_0_is_the_stage_itself() -> None:
    stage = ToyStage()
    assert adapted(stage, LoRAConfig()) is stage


def test_bad_choices_are_one_line() -> None:
    for changes, reason in (
        ({"kernels": "attention"}, "'attention' matches no path"),
        ({"kernels": "bias"}, "layers/blocks/0/out/bias, which is not a matrix"),
        ({"kernels": ""}, "no attention or feed-forward layers"),
        ({"rank": 5}, "blocks/qkv/kernel is 4 x 6; set at most the smaller"),
        ({"kernels": "("}, "not a regular expression"),
    ):
        with pytest.raises(UserError, match=reason):
            init_adapters(MODEL, ROLES, dataclasses.replace(CONFIG, **changes), jax.random.key(0))
    with pytest.raises(UserError, match="without --init-from"):
        toy_config("runs/toy", lora=CONFIG)


def test_adapters_are_placed_like_their_kernel() -> None:
    class Mesh:
        shape = {"data": 1, "fsdp": 2, "tensor": 4}  # noqa: RUF012

    mesh: jax.sharding.Mesh = Mesh()  # type: ignore[assignment]
    spec = jax.sharding.PartitionSpec
    for path, a, b in (
        ("qkv", spec("fsdp"), spec(None, "tensor")),
        ("out", spec("tensor"), spec(None, "fsdp")),
    ):
        adapters = adapter_roles({path: COLUMN if path == "qkv" else ROW}, LoRAConfig(kernels="."))[path]
        found = [parameter_spec(adapters[f"lora_{x}"], s, mesh) for x, s in (("a", (8, 4)), ("b", (4, 8)))]
        assert [tuple(s) for s in found] == [(*a, None), tuple(b)]
