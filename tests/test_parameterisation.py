"""Objectives: exact conversions, weights, angles; and training that agrees with what they mean."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import random_denoiser

from melody_jax import diffusion, parameterisation
from melody_jax.errors import UserError
from melody_jax.models import dpd
from melody_jax.parameterisation import OBJECTIVES, Objective
from melody_jax.training.stages.dpd import DPDStage

SIGMA = 0.4
MODEL = dataclasses.replace(
    dpd.TINY, frames=8, blocks=0, segment=4, semantic_tokens=8, prefix_conditioning=False
)
ANGLE = jnp.asarray(np.linspace(0.0, math.pi / 2, 8), jnp.float32)[None]
CLEAN, NOISE = (np.random.default_rng(seed).normal(size=(1, 8, 3)).astype(np.float32) for seed in (0, 1))


def definition(objective: Objective, clean: Any, noise: Any, angle: Any) -> tuple[np.ndarray, np.ndarray]:
    """The input of a backbone and its target, straight from the definitions."""
    cos, sin = np.cos(angle)[..., None], np.sin(angle)[..., None]
    if objective == "rectified_flow":
        t = sin / (cos + sin)
        return (1 - t) * clean + t * noise, noise - clean
    if objective == "trigflow":
        t = np.arctan2(sin, SIGMA * cos)
        cos, sin, clean = np.cos(t), np.sin(t), clean / SIGMA
    return cos * clean + sin * noise, cos * noise - sin * clean


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_conversions_are_exact(objective: Objective) -> None:
    noisy, velocity = diffusion.corrupt(jnp.asarray(CLEAN), jnp.asarray(NOISE), ANGLE)
    shown, output = definition(objective, CLEAN, NOISE, np.asarray(ANGLE))

    def backbone(noisy: jax.Array, angle: jax.Array) -> jax.Array:
        np.testing.assert_allclose(noisy, shown, atol=1e-5)
        noise_input = np.arctan2(np.sin(ANGLE), SIGMA * np.cos(ANGLE)) if objective == "trigflow" else ANGLE
        np.testing.assert_allclose(angle, noise_input, atol=1e-6)
        return jnp.asarray(output)

    np.testing.assert_allclose(
        parameterisation.velocity(objective, SIGMA, backbone, noisy, ANGLE), velocity, atol=1e-5
    )
    wrong = parameterisation.velocity(objective, SIGMA, lambda *_: jnp.asarray(output + 0.5), noisy, ANGLE)
    weighted = (wrong - velocity) ** 2 * parameterisation.loss_weight(objective, SIGMA, ANGLE)[..., None]
    np.testing.assert_allclose(weighted, 0.25, rtol=1e-4)


def test_trigflow_of_whitened_latents_is_v() -> None:
    preconditioning, plain = OBJECTIVES["trigflow"](ANGLE, 1.0), OBJECTIVES["v"](ANGLE, 1.0)
    for value, expected in zip(preconditioning, plain, strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_backbone_gets_the_angle_that_was_drawn_for_it(objective: Objective) -> None:
    noise_input = OBJECTIVES[objective](
        parameterisation.angle_from_noise_input(objective, SIGMA, ANGLE), SIGMA
    ).c_noise
    np.testing.assert_allclose(noise_input, ANGLE, atol=1e-6)
    assert parameterisation.angle_from_noise_input(objective, SIGMA, ANGLE)[0, 0] == 0


def batch(scale: float = 1.0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(2)
    return {
        "latents": jnp.asarray(scale * rng.normal(size=(16, 8, MODEL.latent_dim)), jnp.float32),
        "semantic_tokens": jnp.asarray(rng.integers(0, 8, (16, 8)), jnp.int32),
        "prefix_tokens": jnp.zeros((16, 12), jnp.int32),
    }


def stage(model: dpd.DPDConfig = MODEL, **fields: Any) -> DPDStage:
    return DPDStage(model=model, clean_prefix=0.3, **fields)


def test_training_on_unwhitened_latents_as_trigflow_is_training_on_whitened_ones() -> None:
    """The same parameters have the same loss, that of the network's own objective."""
    params = {"model": random_denoiser(MODEL)}
    white, raw = stage(), stage(dataclasses.replace(MODEL, objective="trigflow", sigma_data=SIGMA))
    key = jax.random.key(3)
    drawn = raw.draw(batch(), key)
    np.testing.assert_array_equal(drawn.angle == 0, white.draw(batch(), key).angle == 0)
    expected, _ = jax.jit(white._loss)(params, batch(), key)
    loss, _ = jax.jit(raw._loss)(params, batch(SIGMA), key)
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_the_loss_of_rectified_flow_is_that_of_its_straight_velocity() -> None:
    """A network that outputs zero errs by noise - latents; the evaluation stays that of the angular velocity."""
    model = dataclasses.replace(MODEL, objective="rectified_flow")
    flow = stage(model, angles="logit_normal", angle_mean=0.3, angle_std=0.8)
    params = {"model": jax.tree.map(jnp.zeros_like, random_denoiser(MODEL))}
    drawn, clean = flow.draw(batch(), jax.random.key(3)), batch()["latents"]
    loss, _ = jax.jit(flow._loss)(params, batch(), jax.random.key(3))
    wrong = ((drawn.noise - clean) ** 2)[np.asarray(drawn.angle > 0)]
    assert loss == pytest.approx(float(wrong.mean()), rel=1e-5)
    noisy, target = diffusion.corrupt(clean, drawn.noise, drawn.angle)
    cos, sin = jnp.cos(drawn.angle)[..., None], jnp.sin(drawn.angle)[..., None]
    errors = jax.jit(flow._errors)(params["model"], clean, drawn)
    np.testing.assert_allclose(errors, ((cos - sin) / (cos + sin) * noisy - target) ** 2, atol=1e-5)


def test_angles_have_the_distribution_of_their_name() -> None:
    uniform = jnp.asarray((np.arange(10_000) + 0.5) / 10_000 * math.pi / 2, jnp.float32)
    time = diffusion.warp_angles(uniform, "uniform_time")
    cos, sin = np.cos(time), np.sin(time)
    np.testing.assert_allclose(sin / (cos + sin), (np.arange(10_000) + 0.5) / 10_000, atol=1e-4)
    logits = np.log(np.tan(diffusion.warp_angles(uniform, "logit_normal", mean=-0.4, std=1.5)))
    assert logits.mean() == pytest.approx(-0.4, abs=0.01)
    assert logits.std() == pytest.approx(1.5, abs=0.02)
    np.testing.assert_array_equal(diffusion.warp_angles(uniform, "uniform"), uniform)
    for kind in ("uniform_time", "logit_normal"):
        warped = diffusion.warp_angles(uniform, kind)
        assert (np.diff(warped) >= 0).all()
        assert 1.4 < warped.max() <= math.pi / 2
        assert diffusion.warp_angles(jnp.zeros(1), kind)[0] == 0


def test_bad_choices_are_one_line() -> None:
    for change, message in (
        ({"objective": "flow"}, "unknown objective 'flow'"),
        ({"sigma_data": 0.0}, "sigma_data is 0"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(MODEL, **change)
    with pytest.raises(UserError, match="unknown angles 'normal': expected one of uniform, uniform_time"):
        diffusion.warp_angles(ANGLE, "normal")
    with pytest.raises(UserError, match="angle_std is 0"):
        diffusion.warp_angles(ANGLE, "logit_normal", std=0.0)
