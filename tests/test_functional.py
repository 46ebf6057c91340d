"""Rematerialisation policies give the same gradients and repeat more of the work."""

import dataclasses
import re
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.errors import UserError
from melody_jax.models import dpd, functional, lm_config
from melody_jax.models.bert_block import Block, BlockConfig
from melody_jax.models.functional import Remat
from melody_jax.training.stages.dpd import DPDStage
from melody_jax.training.stages.lm import LMStage

CONFIG = BlockConfig(width=16, heads=2, ffn=32)


def gradient(remat: Remat) -> Any:
    """The gradient of a loss over three scanned blocks."""

    def loss(params: Any, x: jax.Array) -> jax.Array:
        blocks = functional.bind(Block, CONFIG, params=params)
        return jnp.sum(functional.scan_blocks(blocks, x, remat=remat) ** 2)

    return jax.grad(loss)


def test_policies_repeat_work_and_change_no_gradient() -> None:
    params = functional.init_stack(Block, CONFIG, key=jax.random.key(0), depth=3)
    x = jax.random.normal(jax.random.key(1), (2, 5, 16))
    expected, work = jax.jit(gradient("none"))(params, x), {}
    for remat in get_args(Remat):
        gradients = jax.jit(gradient(remat))(params, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), gradients, expected)
        work[remat] = str(jax.make_jaxpr(gradient(remat))(params, x)).count("dot_general[")
    assert (
        work["none"] < work["dots"] < work["blocks"]
    )  # "dots" repeats only those of attention, which have batch axes


@pytest.mark.parametrize(
    "stage", [LMStage(model=lm_config.TINY), DPDStage(model=dpd.TINY)], ids=lambda stage: stage.name
)
def test_networks_take_every_policy(stage: Any) -> None:
    params = jax.eval_shape(stage.init, jax.random.key(0))
    batch = {
        "semantic_tokens": jnp.zeros((2, 80), jnp.int32),
        "prefix_tokens": jnp.zeros((2, 12), jnp.int32),
        "latents": jnp.zeros((2, 80, dpd.TINY.latent_dim)),
    }
    policies = {}
    for remat in get_args(Remat):
        other = dataclasses.replace(stage, model=dataclasses.replace(stage.model, remat=remat))
        traced = jax.make_jaxpr(lambda p, other=other: other.gradients(p, batch, jax.random.key(1), 0))(
            params
        )
        policies[remat] = set(re.findall(r"policy=(\S+)", str(traced)))
    assert (policies["none"], policies["blocks"]) == (set(), {"None"})
    assert len(policies["dots"] - {"None"}) == 1


def test_unknown_policy_is_refused() -> None:
    with pytest.raises(UserError, match="remat 'some': it must be one of none, dots, blocks"):
        functional.rematerialised(jnp.sin, "some")
