"""Consistency distillation: only a consistent student has no loss; a fresh student equals its teacher."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.config import TrainConfig
from melody_jax.errors import UserError
from melody_jax.models import denoiser, dpd
from melody_jax.training.stages import consistency
from melody_jax.training.stages.consistency import ConsistencyStage
from melody_jax.training.stages.dpd import DPDStage
from melody_jax.training.state import create_state

MODEL = dataclasses.replace(dpd.TINY, frames=24, blocks=1, segment=4, guidance_range=(1.0, 4.0))
STAGE = ConsistencyStage(model=MODEL)
SPREAD = 0.5
"""Standard deviation of the data of `gaussian`."""


@pytest.fixture
def batch() -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "latents": SPREAD * jax.random.normal(keys[0], (4, MODEL.frames, MODEL.latent_dim)),
        "semantic_tokens": jax.random.randint(keys[1], (4, MODEL.frames), 0, MODEL.semantic_tokens),
        "prefix_tokens": jax.random.randint(keys[2], (4, MODEL.prefix_levels), 0, MODEL.prefix_codes),
    }


def gaussian(student: Any) -> Any:
    """`denoiser.velocity` for latents of N(0, SPREAD^2), whose paths and consistency function are known in closed form.

    A path is z proportional to s(angle), s^2 = cos^2 SPREAD^2 + sin^2; its velocity is ds/dangle / s z, and its end is
    z SPREAD / s. `student(noisy, exact)` is the student's velocity, given the exact one.
    """

    def velocity(params: Any, config: Any, noisy: jax.Array, angle: jax.Array, *_: Any) -> jax.Array:
        cos, sin = jnp.cos(angle)[..., None], jnp.sin(angle)[..., None]
        spread = jnp.sqrt(cos**2 * SPREAD**2 + sin**2)
        along = cos * sin * (1 - SPREAD**2) / spread**2 * noisy
        if config.guidance_range is None:
            return along
        return student(along, (cos * noisy - noisy * SPREAD / spread) / jnp.maximum(sin, 1e-6))

    return velocity


def loss_of(
    stage: ConsistencyStage, batch: dict[str, jax.Array], monkeypatch: pytest.MonkeyPatch, student: Any
) -> float:
    monkeypatch.setattr(consistency.denoiser, "velocity", gaussian(student))
    params = {"base": {}, "model": {}}
    return float(jax.jit(stage.gradients)(params, batch, jax.random.key(1), jnp.int32(0))[1]["loss"])


@pytest.mark.parametrize("span", [math.pi / 2, 0.3])
def test_a_consistent_student_has_no_loss(span: float, batch, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = dataclasses.replace(STAGE, teacher_steps=24, span=span)
    exact = loss_of(stage, batch, monkeypatch, lambda along, exact: exact)
    along = loss_of(
        stage, batch, monkeypatch, lambda along, exact: along
    )  # a diffusion's velocity is not consistent
    assert exact < 1e-5
    assert along > 20 * exact
    if span == math.pi / 2:
        shifted = loss_of(stage, batch, monkeypatch, lambda along, exact: exact + 0.5)
        assert shifted == pytest.approx(0.25, abs=0.01)


def test_trajectories_end_where_paths_do_and_leave_context_alone(
    batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consistency.denoiser, "velocity", gaussian(lambda along, exact: exact))
    stage = dataclasses.replace(STAGE, clean_prefix=1.0, teacher_steps=20)
    starts = stage._draw(batch["latents"], jax.random.key(4))
    visited, angles, end = stage._trajectory({}, {}, batch, starts)
    assert visited.shape == (20, *batch["latents"].shape)
    assert angles.shape == (20, 4)
    assert not starts.is_new[:, 0].any()
    assert starts.is_new[:, -1].all()
    context = ~starts.is_new
    np.testing.assert_array_equal(end[context], batch["latents"][context])
    np.testing.assert_array_equal(
        visited[:, context], jnp.broadcast_to(batch["latents"][context], visited[:, context].shape)
    )
    angle = np.asarray(starts.angle)
    assert (angle == np.float32(math.pi / 2)).any()
    ratio = SPREAD / np.sqrt((np.cos(angle) * SPREAD) ** 2 + np.sin(angle) ** 2)
    expected = starts.noisy * ratio[:, None, None]
    far = float(jnp.abs(end - expected)[starts.is_new].mean() / jnp.abs(expected)[starts.is_new].mean())
    assert far < 0.015  # of first order, 20 steps err by 0.05


def test_only_the_difference_is_trained(batch) -> None:
    params = jax.eval_shape(STAGE.init, jax.random.key(2))
    grads, _ = jax.eval_shape(STAGE.gradients, params, batch, jax.random.key(1), jnp.int32(0))
    assert set(grads) == {"model"}
    assert jax.tree.structure(grads["model"]) == jax.tree.structure(params["model"])
    state = jax.eval_shape(
        lambda key: create_state(TrainConfig(stage=STAGE, init_from="mini"), key), jax.random.key(0)
    )
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * sum(leaf.size for leaf in jax.tree.leaves(params["model"]))


def test_a_fresh_student_is_its_teacher_at_any_scale(batch) -> None:
    params = jax.jit(STAGE.init)(jax.random.key(2))
    student = consistency.add_difference(params["base"], params["model"])
    given = (
        batch["latents"],
        jnp.full((4, MODEL.frames), 0.7),
        batch["semantic_tokens"],
        4,
        batch["prefix_tokens"],
    )
    teacher = jax.jit(lambda params: denoiser.velocity(params, STAGE.teacher.model, *given))(params["base"])
    velocity = jax.jit(lambda params, scale: denoiser.velocity(params, MODEL, *given, scale))
    np.testing.assert_allclose(velocity(student, jnp.array([1.0, 2.0, 3.0, 4.0])), teacher, atol=1e-5)
    student["guidance"]["out"]["kernel"] = jax.random.normal(jax.random.key(3), (64, MODEL.width))
    changed = np.abs(
        velocity(student, jnp.array([1.0, 2.0, 2.0, 4.0])) - velocity(student, jnp.full(4, 2.0))
    ).max(axis=(1, 2))
    np.testing.assert_array_equal(changed > 1e-3, [True, False, False, True])


def test_bad_choices_are_one_line() -> None:
    for changes, reason in (
        ({"model": dpd.TINY}, "guidance_range is None"),
        ({"points": 6}, "points is 6; it must be from 1 to teacher_steps 5"),
        ({"span": 2.0}, "span is 2.0"),
        ({"usual_guidance": 5.0}, "usual_guidance is 5.0; it must be from 1.0 to 4.0"),
    ):
        with pytest.raises(UserError, match=reason):
            dataclasses.replace(STAGE, **changes)
    with pytest.raises(UserError, match="guidance_range is"):
        dataclasses.replace(MODEL, guidance_range=(3.0, 2.0))
    with pytest.raises(UserError, match="needs --init-from"):
        TrainConfig(stage=STAGE)
    TrainConfig(stage=DPDStage(model=dpd.TINY))
