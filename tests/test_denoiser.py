"""Every backbone of the diffusion: dependence on its inputs, any number of frames, learning; a new one is one line."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers.tiny import random_denoiser
from jax.flatten_util import ravel_pytree

from melody_jax import diffusion, guidance, release
from melody_jax.config_json import from_dict, to_dict
from melody_jax.errors import UserError
from melody_jax.flops import matmul_cost
from melody_jax.models import denoiser, dit, dpd, lm_config, unet1d, unet2d
from melody_jax.models.conditioning import Backbone, Conditioning, shared_fields
from melody_jax.models.denoiser import DenoiserConfig
from melody_jax.models.functional import Remat, count
from melody_jax.models.layers import Linear
from melody_jax.models.unet import UNetConfig
from melody_jax.sampling import windows
from melody_jax.sampling.item_controls import Controls, item_keys, split_seeds
from melody_jax.training.stages.consistency import ConsistencyStage
from melody_jax.training.stages.dpd import DPDStage

SHARED: dict[str, Any] = shared_fields(dpd.TINY) | {
    "frames": 24,
    "semantic_tokens": 16,
    "prefix_codes": 8,
    "aligned_tokens": True,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneLayerConfig(DenoiserConfig):
    """A backbone that somebody adds."""

    def macs(self, frames: int) -> int:
        """Of its two layers."""
        return frames * 2 * self.latent_dim * self.width


class OneLayer(Backbone):
    """Frames for themselves: two layers, the conditioning between them."""

    def __init__(self, config: OneLayerConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.inputs = Linear(config.latent_dim, config.width, rngs=rngs)
        self.outputs = Linear(config.width, config.latent_dim, rngs=rngs)

    def __call__(self, noisy: jax.Array, cond: Conditioning) -> jax.Array:
        return self.outputs(
            jax.nn.gelu(self.inputs(noisy) + cond.angles + cond.aligned + cond.pooled[:, None])
        )


BACKBONES: dict[str, DenoiserConfig] = {
    "dpd": dataclasses.replace(dpd.TINY, **SHARED, blocks=1, segment=4),
    "unet1d": dataclasses.replace(unet1d.TINY, **SHARED),
    "unet2d": dataclasses.replace(unet2d.TINY, **SHARED),
    "dit": dataclasses.replace(dit.TINY, **SHARED),
}
VARIANTS = {
    "linear_recurrence": dataclasses.replace(
        BACKBONES["dpd"], fine="linear_recurrence", film="none", sru_hidden=8
    ),
    "local_attention": dataclasses.replace(BACKBONES["dpd"], fine="local_attention", merge=False),
    "post_norm": dataclasses.replace(BACKBONES["dpd"], residual="post_norm"),
    "pre_norm": dataclasses.replace(BACKBONES["dpd"], residual="pre_norm"),
    "adaln": dataclasses.replace(BACKBONES["dpd"], residual="pre_norm", film="adaln"),
    "rectified_flow": OneLayerConfig(**SHARED | {"objective": "rectified_flow"}),
}


@pytest.fixture(params=[*BACKBONES, "one_layer"])
def config(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DenoiserConfig:
    monkeypatch.setitem(denoiser.BACKBONES, OneLayerConfig, OneLayer)
    return BACKBONES.get(request.param) or OneLayerConfig(**SHARED)


def inputs(config: DenoiserConfig, frames: int = 24, batch: int = 3, seed: int = 0) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 4)
    return {
        "noisy": jax.random.normal(keys[0], (batch, frames, config.latent_dim)),
        "angle": diffusion.sample_angles(keys[1], batch, frames, config.chunks),
        "semantic_tokens": jax.random.randint(keys[2], (batch, frames), 0, config.semantic_tokens),
        "prefix_tokens": jax.random.randint(keys[3], (batch, config.prefix_levels), 0, config.prefix_codes),
    }


@partial(jax.jit, static_argnames=("config", "network"))
def _run(
    params: Any, config: DenoiserConfig, network: Any, has_condition: jax.Array, given: Any
) -> jax.Array:
    return denoiser.velocity(params, config, has_condition=has_condition, **given)


def run(params: Any, config: DenoiserConfig, has_condition: Any = True, **given: jax.Array) -> np.ndarray:
    given = inputs(config) | given
    mask = jnp.broadcast_to(jnp.asarray(has_condition), len(given["noisy"]))
    return np.asarray(_run(params, config, denoiser.BACKBONES[type(config)], mask, given))


def test_output_depends_on_every_input_and_the_null_branch_on_no_token(config: DenoiserConfig) -> None:
    check_dependence(config)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_other_choices_have_the_same_dependence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(denoiser.BACKBONES, OneLayerConfig, OneLayer)
    check_dependence(VARIANTS[name])
    check_macs(VARIANTS[name])


def check_dependence(config: DenoiserConfig) -> None:
    params, other = random_denoiser(config), inputs(config, seed=9)
    base, null = run(params, config), run(params, config, False)
    assert base.shape == (3, 24, config.latent_dim)
    assert base.dtype == np.float32
    assert np.abs(null - base).max() > 1e-3
    for name, changed in other.items():
        assert np.abs(run(params, config, **{name: changed}) - base).max() > 1e-3, name
        same = np.array_equal(run(params, config, False, **{name: changed}), null)
        assert same == name.endswith("tokens"), name


def test_items_are_independent(config: DenoiserConfig) -> None:
    params, given, other = random_denoiser(config), inputs(config), inputs(config, seed=9)
    mixed = {name: x.at[:2].set(other[name][:2]) for name, x in given.items()}
    mask = jnp.array([True, False, True])
    np.testing.assert_allclose(run(params, config, mask, **mixed)[2], run(params, config)[2], atol=1e-5)


def test_a_frames_angle_acts_on_that_frame(config: DenoiserConfig) -> None:
    params, angle = random_denoiser(config), jnp.full((3, 24), 0.7)
    moved = np.abs(run(params, config, angle=angle.at[:, 20:].set(0.0)) - run(params, config, angle=angle))
    moved = moved.mean(axis=(0, 2))
    assert moved[20:].min() > 1e-3
    assert moved[20:].mean() > 1.5 * moved[:12].mean()


def test_any_number_of_frames(config: DenoiserConfig) -> None:
    params = random_denoiser(config)
    velocity = run(params, config, **inputs(config, frames=13))
    assert velocity.shape == (3, 13, config.latent_dim)
    assert np.isfinite(velocity).all()
    one = jax.eval_shape(
        partial(denoiser.velocity, config=config, has_condition=3, **inputs(config, frames=1)), params
    )
    assert one.shape == (3, 1, config.latent_dim)


def test_macs_equal_those_in_the_trace(config: DenoiserConfig) -> None:
    check_macs(config)


def check_macs(config: DenoiserConfig) -> None:
    other = dataclasses.replace(
        config, cross_attention=False, aligned_tokens=False, prefix_conditioning=False
    )
    other = dataclasses.replace(other, frames_per_token=2, guidance_range=(1.0, 2.0))
    for changed, frames in ((config, 24), (other, 22)):
        params = jax.eval_shape(partial(denoiser.init, changed), jax.random.key(0))
        given = inputs(changed, frames, batch=1)
        given["semantic_tokens"] = given["semantic_tokens"][:, : changed.tokens(frames)]
        evaluate = partial(
            denoiser.velocity, config=changed, has_condition=1, guidance_scale=jnp.ones(1), **given
        )
        assert denoiser.flops(changed, frames) == matmul_cost(jax.make_jaxpr(evaluate)(params))[0]


def task(key: jax.Array, config: DenoiserConfig, batch: int) -> dict[str, jax.Array]:
    """Latents that are a fixed function of the tokens."""
    table = jax.random.normal(jax.random.key(77), (config.semantic_tokens, config.latent_dim))
    tokens = jax.random.randint(key, (batch, config.frames), 0, config.semantic_tokens)
    prefix = jnp.zeros((batch, config.prefix_levels), jnp.int32)
    return {"latents": table[tokens], "semantic_tokens": tokens, "prefix_tokens": prefix}


@pytest.mark.parametrize(
    "name", ["unet2d", "dit"]
)  # the other U-Net is the same code, tests/test_dpd.py has DPD
def test_it_learns(name: str) -> None:
    """The loss on music that is a function of its tokens falls, from that of a network that predicts zero."""
    config = BACKBONES[name]
    if isinstance(config, UNetConfig):
        config = dataclasses.replace(
            config, attention_levels=0
        )  # the attention is DiT's, and takes long to compile
    stage = DPDStage(model=config, shared_angle=0.3, clean_prefix=0.2)
    flat, unravel = ravel_pytree(jax.jit(stage.init)(jax.random.key(0)))  # one vector: less to compile
    optimizer = optax.adam(6e-3)

    @jax.jit
    def step(flat: jax.Array, state: Any, key: jax.Array) -> Any:
        grads, metrics = stage.gradients(unravel(flat), task(key, config, 8), key, jnp.int32(0))
        updates, state = optimizer.update(ravel_pytree(grads)[0], state, flat)
        return optax.apply_updates(flat, updates), state, metrics["loss"]

    state, losses = optimizer.init(flat), []
    for key in jax.random.split(jax.random.key(3), 80):
        flat, state, loss = step(flat, state, key)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(1.0, abs=0.15)
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:5])


def test_it_is_released_and_samples_guided_beside_its_context(config: DenoiserConfig, tmp_path: Path) -> None:
    """One step from noise is the guided velocity, turned round."""
    release.save_network(tmp_path, "dpd", random_denoiser(config), config, {})
    params, loaded, _ = release.load_network(tmp_path, "dpd")
    assert loaded == config
    given = inputs(config)
    prefix, tokens, seeds = given["prefix_tokens"], given["semantic_tokens"], split_seeds(range(3))
    controls = Controls(
        prefix,
        prefix,
        seeds,
        jnp.arange(3),
        *[jnp.ones(3)] * 5,
        jnp.array([1.0, 2.0, 4.0]),
        jnp.array([0.5, 0.0, 0.7]),
    )
    keys, is_new = item_keys(controls), jnp.arange(24) >= 18
    sampler = windows.SamplerConfig(lm=lm_config.TINY, dpd=config, steps=1)
    draw = jax.jit(windows.tokens_to_latents, static_argnums=1)
    latents = draw(params, sampler, controls, tokens, keys, given["noisy"], is_new)
    np.testing.assert_array_equal(latents[:, :18], given["noisy"][:, :18])
    noise = windows.initial_noise(keys, 24, config.latent_dim)
    start = {
        "noisy": jnp.where(is_new[:, None], noise, given["noisy"]),
        "angle": jnp.where(is_new, diffusion.HALF_PI, 0.0) * jnp.ones((3, 1)),
    }
    branches = [run(params, config, branch, **start) for branch in (True, False)]
    guided = guidance.guide(*branches, controls.guidance_scale[:, None, None])
    wanted = guidance.rescale(guided, branches[0], controls.guidance_rescale[:, None, None], is_new)
    np.testing.assert_allclose(latents[:, 18:], -wanted[:, 18:], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(latents[:2, 18:], -guided[:2, 18:], rtol=1e-4, atol=1e-4)
    assert np.abs(latents[2, 18:] + guided[2, 18:]).max() > 1e-2


@pytest.mark.parametrize("name", ["unet1d", "dit"])  # tests/test_consistency.py has DPD
def test_it_can_be_distilled(name: str) -> None:
    config = BACKBONES[name]
    stage = ConsistencyStage(model=dataclasses.replace(config, guidance_range=(1.0, 4.0)))
    params = jax.eval_shape(stage.init, jax.random.key(2))
    batch = jax.eval_shape(partial(task, config=config, batch=2), jax.random.key(0))
    grads, _ = jax.eval_shape(stage.gradients, params, batch, jax.random.key(1), jnp.int32(0))
    assert jax.tree.structure(grads["model"]) == jax.tree.structure(params["model"])


@pytest.mark.parametrize("name", ["unet1d", "dit"])  # tests/test_functional.py has DPD
def test_it_takes_every_remat_policy(name: str) -> None:
    batch, products = task(jax.random.key(0), BACKBONES[name], 2), []
    for remat in get_args(Remat):
        stage = DPDStage(model=dataclasses.replace(BACKBONES[name], remat=remat))
        params = jax.eval_shape(stage.init, jax.random.key(0))
        traced = jax.make_jaxpr(stage.gradients)(params, batch, jax.random.key(1), jnp.int32(0))
        products.append(matmul_cost(traced)[0])
    none, dots, blocks = products
    assert none < dots < blocks


@pytest.mark.parametrize(
    "backbone", [unet1d, unet2d, dit], ids=lambda module: module.__name__.rpartition(".")[2]
)
def test_studies_compare_as_many_parameters(backbone: Any) -> None:
    def size(config: DenoiserConfig) -> int:
        return count(jax.eval_shape(partial(denoiser.init, config), jax.random.key(0)))

    assert size(backbone.ABLATION) == pytest.approx(size(dpd.ABLATION), rel=0.02)
    assert shared_fields(backbone.ABLATION) == shared_fields(dpd.ABLATION)


def test_configs_say_their_class(config: DenoiserConfig) -> None:
    written = to_dict(DPDStage(model=config))
    assert written["model"]["class"] == type(config).__name__
    assert from_dict(DPDStage, written).model == config
    with pytest.raises(UserError, match="class 'Net': it must be one of DPDConfig"):
        from_dict(DenoiserConfig, to_dict(config) | {"class": "Net"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": ()}, "channels"),
        ({"attention_levels": 3}, "attention_levels is 3; there are 2 levels"),
        ({"head_width": 7}, "head_width 7"),
        ({"guidance_range": (3.0, 2.0)}, "guidance_range"),
    ],
)
def test_impossible_unets_are_refused(change: dict[str, Any], message: str) -> None:
    base = BACKBONES["unet1d"]
    assert isinstance(base, UNetConfig)
    with pytest.raises(UserError, match=message):
        dataclasses.replace(base, **change)
