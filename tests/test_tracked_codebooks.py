"""The quantiser in training: gradients pass straight through, codes follow their residuals, dead codes come to life."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from melody_jax.config import OptimizerConfig
from melody_jax.errors import UserError
from melody_jax.models import rvq, vae
from melody_jax.models.rvq import QuantiserConfig
from melody_jax.roles import TRACKED, VECTOR
from melody_jax.training import tracked_codebooks
from melody_jax.training.state import make_optimizer

CENTRES = np.random.default_rng(0).normal(0, 1, (8, 4)).astype(np.float32)


def vectors(seed: int, items: int = 16, length: int = 8) -> jax.Array:
    """Latents (B, L, 4) around eight centres."""
    rng = np.random.default_rng(seed)
    chosen = CENTRES[rng.integers(0, len(CENTRES), (items, length))]
    return jnp.asarray(chosen + 0.02 * rng.normal(size=chosen.shape), jnp.float32)


def everything(latents: jax.Array, levels: int) -> jax.Array:
    return jnp.full(len(latents), levels)


def test_gradients_pass_straight_through() -> None:
    books = jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 4)), jnp.float32)
    latents = vectors(0)
    pull = np.random.default_rng(2).normal(size=latents.shape).astype(np.float32)

    def output(z: jax.Array) -> jax.Array:
        return jnp.sum(tracked_codebooks.quantise(books, z, everything(z, 3)).latents * pull)

    np.testing.assert_allclose(jax.grad(output)(latents), pull, rtol=1e-5)
    quantised = tracked_codebooks.quantise(books, latents, everything(latents, 3))
    codes = rvq.quantise(books, latents)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(quantised.codes), 0, -1), codes)
    np.testing.assert_allclose(quantised.latents, rvq.dequantise(books, codes), atol=1e-5)

    def commitment(z: jax.Array) -> jax.Array:
        return tracked_codebooks.quantise(books[:1], z, everything(z, 1)).commitment

    nearest = books[0][codes[..., 0]]
    np.testing.assert_allclose(commitment(latents), jnp.mean((latents - nearest) ** 2), rtol=1e-5)
    np.testing.assert_allclose(
        jax.grad(commitment)(latents), 2 * (latents - nearest) / latents.size, rtol=1e-4, atol=1e-8
    )


def test_items_keep_the_levels_that_they_draw() -> None:
    books = jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 4)), jnp.float32)
    latents = vectors(0, items=3)
    quantised = tracked_codebooks.quantise(books, latents, jnp.asarray([1, 2, 3]))
    codes = rvq.quantise(books, latents)
    for item, kept in enumerate((1, 2, 3)):
        expected = rvq.dequantise(books, codes[item, :, :kept])
        np.testing.assert_allclose(quantised.latents[item], expected, atol=1e-5)
    np.testing.assert_array_equal(quantised.is_used.sum(1), [3, 2, 1])
    drawn = tracked_codebooks.draw_levels(jax.random.key(0), 4_000, 4, 0.5)
    shares = np.bincount(np.asarray(drawn), minlength=5) / 4_000
    np.testing.assert_allclose(shares, [0, 0.125, 0.125, 0.125, 0.625], atol=0.03)
    assert (np.asarray(tracked_codebooks.draw_levels(jax.random.key(0), 9, 4, 0.0)) == 4).all()


def test_codes_find_the_centres_and_none_stays_dead() -> None:
    config = QuantiserConfig(levels=2, codes=8)
    averages = tracked_codebooks.init(config, 4)
    books = jnp.zeros((2, 8, 4))
    errors = []
    for step in range(60):
        latents = vectors(step)
        quantised = tracked_codebooks.quantise(books, latents, everything(latents, 2))
        moved, by = tracked_codebooks.follow(
            averages, books, quantised, decay=0.9, dead_share=0.1, key=jax.random.key(step)
        )
        books = books - moved
        averages = jax.tree.map(jnp.subtract, averages, by)
        errors.append(float(jnp.mean((quantised.latents - latents) ** 2)))
    assert errors[-1] < 0.01 * errors[0]
    codes = rvq.quantise(books, vectors(99, items=64))
    usage = tracked_codebooks.usage(codes, 8)
    assert usage["level_00/used"] == 1
    assert 2 < usage["level_00/bits"] <= 3
    latents = vectors(99)
    coarse = rvq.dequantise(books, rvq.quantise(books, latents)[..., :1])
    assert jnp.mean((coarse - latents) ** 2) < 0.3 * jnp.var(latents)


def test_codebooks_of_a_release_are_kept() -> None:
    books = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 4)), jnp.float32)
    averages = tracked_codebooks.init(QuantiserConfig(levels=2, codes=8), 4)
    latents = vectors(0)
    quantised = tracked_codebooks.quantise(books, latents, everything(latents, 2))
    moved, by = tracked_codebooks.follow(
        averages, books, quantised, decay=0.99, dead_share=0.2, key=jax.random.key(0)
    )
    assert np.abs(moved).max() < 0.2
    assert (np.asarray(averages["counts"] - by["counts"]) > 0).all()


def test_averages_take_their_gradients_as_they_are() -> None:
    """Whatever the learning rate, the clipping and the decay."""
    roles = {"model": {"codebooks": TRACKED, "bias": VECTOR}, "quantiser": tracked_codebooks.ROLES}
    params = {
        "model": {"codebooks": jnp.full((2, 3, 4), 5.0), "bias": jnp.ones(4)},
        "quantiser": {"counts": jnp.ones((2, 3)), "sums": jnp.ones((2, 3, 4)), "age": jnp.ones(2)},
    }
    optimizer = make_optimizer(OptimizerConfig(clip_norm=0.1, weight_decay=0.5), 10, roles)
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3.0), params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    assert isinstance(new, dict)
    np.testing.assert_array_equal(new["model"]["codebooks"], np.full((2, 3, 4), 2.0))
    np.testing.assert_array_equal(new["quantiser"]["counts"], np.full((2, 3), -2.0))
    assert np.abs(new["model"]["bias"] - 1).max() < 0.01


def test_an_autoencoder_with_codes() -> None:
    config = vae.TINY_CODES
    params = vae.init(config, jax.random.key(0))
    books = jax.random.normal(jax.random.key(1), params["codebooks"].shape)
    params = params | {"codebooks": books}
    audio = jnp.asarray(np.random.default_rng(0).normal(0, 0.1, (2, 4_800)), jnp.float32)
    codes = vae.codes(params, config, audio)
    assert codes.shape == (2, 5, 3)
    assert codes.dtype == jnp.int32
    latents = vae.encode(params, config, audio)
    np.testing.assert_array_equal(latents, vae.dequantise(params, config, codes))
    assert vae.decode(params, config, latents).shape == (2, 4_800)
    coarse = vae.dequantise(params, config, codes[..., :1])
    assert not np.allclose(coarse, latents)
    assert vae.shapes(config)["codebooks"].shape == (3, 16, 8)


def test_the_rates_of_the_published_codec() -> None:
    config = vae.PAPER_CODES
    assert config.hop == 480
    assert config.quantiser is not None
    assert config.quantiser.bits * config.audio_format.sample_rate / config.hop == 6_000


@pytest.mark.parametrize("wrong", [{"levels": 0}, {"codes": 1}])
def test_impossible_quantisers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="it must be at least"):
        dataclasses.replace(QuantiserConfig(), **wrong)
