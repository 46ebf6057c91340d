"""Backbones of the diffusion that follow word pieces, and that refine the frames of a lower rate."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import random_denoiser

from melody_jax.errors import UserError
from melody_jax.flops import matmul_cost
from melody_jax.models import denoiser, dit, dpd, unet1d, unet2d
from melody_jax.models.conditioning import (
    DenoiserConfig,
    LowerFrames,
    TextCondition,
    WordPieces,
    shared_fields,
)

SHARED: dict[str, Any] = shared_fields(dpd.TINY) | {"frames": 22, "text": TextCondition(width=6, length=5)}
BACKBONES: dict[str, DenoiserConfig] = {
    "dpd": dataclasses.replace(dpd.TINY, **SHARED, blocks=1, segment=4),
    "unet1d": dataclasses.replace(unet1d.TINY, **SHARED | {"lower_ratio": 4, "lower_noise": 1.2}),
    "unet2d": dataclasses.replace(unet2d.TINY, **SHARED),
    "dit": dataclasses.replace(dit.TINY, **SHARED | {"lower_ratio": 4, "lower_noise": 1.2}),
}


@pytest.fixture(params=BACKBONES)
def config(request: pytest.FixtureRequest) -> DenoiserConfig:
    return BACKBONES[request.param]


def inputs(config: DenoiserConfig) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 4)
    given: dict[str, Any] = {
        "noisy": jax.random.normal(keys[0], (3, 22, config.latent_dim)),
        "angle": jnp.linspace(0.3, 1.2, 22) * jnp.ones((3, 1)),
        "text": WordPieces(jax.random.normal(keys[1], (3, 5, 6)), jnp.arange(5) < jnp.array([[5], [3], [1]])),
    }
    if config.lower_ratio:
        given["lower"] = LowerFrames(
            jax.random.normal(keys[2], (3, 6, config.latent_dim)), jnp.array([0.1, 0.5, 0.9])
        )
    return given


@partial(jax.jit, static_argnames="config")
def _run(params: Any, config: DenoiserConfig, mask: jax.Array, given: dict[str, Any]) -> jax.Array:
    return denoiser.velocity(params, config, semantic_tokens=None, has_condition=mask, **given)


def run(params: Any, config: DenoiserConfig, has_condition: Any = True, **given: Any) -> np.ndarray:
    mask = jnp.broadcast_to(jnp.asarray(has_condition), 3)
    return np.asarray(_run(params, config, mask, inputs(config) | given))


def differs(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() > 1e-4)


def test_output_follows_the_words_and_the_null_branch_does_not(config: DenoiserConfig) -> None:
    params = random_denoiser(config)
    pieces = inputs(config)["text"]
    others = pieces._replace(features=pieces.features + 1)
    assert differs(run(params, config), run(params, config, text=others))
    np.testing.assert_array_equal(run(params, config, False), run(params, config, False, text=others))


def test_padding_and_the_place_of_a_word_in_time_do_not_matter(config: DenoiserConfig) -> None:
    params = random_denoiser(config)
    pieces = inputs(config)["text"]
    padding = pieces.features + 10 * (1 - pieces.mask[..., None])
    np.testing.assert_allclose(
        run(params, config), run(params, config, text=pieces._replace(features=padding)), atol=1e-5
    )
    turned = WordPieces(pieces.features[:, ::-1], pieces.mask[:, ::-1])
    np.testing.assert_allclose(run(params, config), run(params, config, text=turned), atol=1e-5)


def test_rows_of_guidance_equal_the_masked_batch(config: DenoiserConfig) -> None:
    """The first two items have a condition: two rows of words suffice, and nothing else changes."""
    params = random_denoiser(config)
    given = inputs(config)
    expected = run(params, config, jnp.array([True, True, False]))
    words = jax.tree.map(lambda rows: rows[:2], given["text"])
    counted = jax.jit(partial(denoiser.velocity, config=config, semantic_tokens=None, has_condition=2))
    np.testing.assert_allclose(counted(params, **given | {"text": words}), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["unet1d", "dit"])
def test_the_lower_frames_and_their_noise_are_seen_in_both_branches(name: str) -> None:
    config = BACKBONES[name]
    params = random_denoiser(config)
    lower = inputs(config)["lower"]
    for has_condition in (True, False):
        base = run(params, config, has_condition)
        assert differs(base, run(params, config, has_condition, lower=lower._replace(noisy=-lower.noisy)))
        assert differs(
            base, run(params, config, has_condition, lower=lower._replace(angle=lower.angle + 0.3))
        )


def test_a_lower_frame_is_beside_its_own_frames() -> None:
    """Without attention and pooling a U-Net's convolutions reach a few frames only."""
    config = dataclasses.replace(
        BACKBONES["unet1d"], channels=(16,), attention_levels=0, cross_attention=False
    )
    params = random_denoiser(config)
    lower = inputs(config)["lower"]
    changed = lower._replace(noisy=lower.noisy.at[:, 3].add(1.0))
    moved = np.abs(run(params, config) - run(params, config, lower=changed)).max(axis=(0, 2)) > 1e-6
    assert moved[12:16].all()  # lower frame 3 at 4 frames each
    assert not moved[:4].any()


def test_flops_are_those_of_the_traced_program(config: DenoiserConfig) -> None:
    params = denoiser.shapes(config)
    given = jax.tree.map(lambda rows: rows[:1], inputs(config))
    evaluate = partial(denoiser.velocity, config=config, semantic_tokens=None, has_condition=1, **given)
    assert denoiser.flops(config, 22) == matmul_cost(jax.make_jaxpr(evaluate)(params))[0]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: TextCondition(length=0), "text: length is 0"),
        (
            lambda: dataclasses.replace(dpd.TINY, text=TextCondition(), aligned_tokens=True),
            "aligned_tokens is True",
        ),
        (lambda: dataclasses.replace(dpd.TINY, lower_ratio=-1), "lower_ratio is -1"),
        (lambda: dataclasses.replace(unet2d.TINY, lower_ratio=2), "lower_ratio is 2"),
        (lambda: dataclasses.replace(dpd.TINY, lower_noise=0.5), r"lower_noise is 0\.5"),
        (lambda: dataclasses.replace(dpd.TINY, lower_ratio=2, lower_noise=2.0), r"lower_noise is 2\.0"),
    ],
)
def test_impossible_conditions_are_refused(make: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make()
