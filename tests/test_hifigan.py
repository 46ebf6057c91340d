"""The paper's codec: sizes, shapes, reach, and learning through the VAE stage."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.errors import UserError
from melody_jax.models import discriminators, vae
from melody_jax.models.functional import Remat, count
from melody_jax.models.hifigan import HiFiGANConfig
from melody_jax.models.vae import VAEConfig
from melody_jax.training.stages.vae import VAEStage

CODEC = HiFiGANConfig(
    encoder_rates=(2, 3),
    encoder_channels=(4, 8),
    encoder_kernels=(5, 7),
    decoder_rates=(3, 2),
    decoder_channels=(8, 4),
    decoder_kernels=(7, 5),
    dilations=(1, 3),
)
CONFIG = VAEConfig(latent_width=6, latent_scale=3.0, latent_clip=1.0, codec=CODEC)


def lively(config: VAEConfig) -> dict:
    """Parameters with biases other than zero."""
    params = vae.init(config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params["decoder"])
    leaves = [x + 0.1 * jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)]
    return params | {"decoder": jax.tree.unflatten(tree, leaves)}


def test_paper_sizes() -> None:
    shapes = jax.eval_shape(lambda key: vae.init(vae.PAPER, key), jax.random.key(0))
    assert vae.PAPER.hop == 96
    assert count(shapes["decoder"]) == 60_963_265  # the paper has 60.1 M, and 40 M for the encoder
    assert count(shapes["encoder"]) == 5_674_368
    latents = jax.eval_shape(lambda p, x: vae.encode(p, vae.PAPER, x), shapes, jnp.zeros((1, 240_000)))
    assert latents.shape == (1, 2500, 16)
    audio = jax.eval_shape(lambda p, z: vae.decode(p, vae.PAPER, z), shapes, latents)
    assert audio.shape == (1, 240_000)


def test_latents_are_bounded_and_audio_has_its_length() -> None:
    params = lively(CONFIG)
    audio = 0.3 * jax.random.normal(jax.random.key(1), (2, 120))
    latents = vae.encode(params, CONFIG, audio)
    assert latents.shape == (2, 20, 6)
    assert np.abs(latents).max() <= 1
    decoded = vae.decode(params, CONFIG, latents)
    assert decoded.shape == audio.shape
    assert np.abs(decoded).max() < 1
    np.testing.assert_allclose(vae.decode(params, CONFIG, latents[1:]), decoded[1:], atol=1e-6)
    reconstructed, pairs = vae.reconstruct(params, CONFIG, latents, audio)
    np.testing.assert_array_equal(reconstructed, decoded)
    assert pairs == []


def test_reach_by_gradient() -> None:
    params, middle, hop = lively(CONFIG), 60, CONFIG.hop
    latents = jax.random.normal(jax.random.key(2), (1, 2 * middle, 6)) / 3
    stretch = slice(middle * hop, (middle + 1) * hop)
    slope = jax.grad(lambda z: jnp.sum(vae.decode(params, CONFIG, z)[:, stretch] ** 2))(latents)
    seen, reach = np.flatnonzero(np.abs(slope).sum((0, 2)) > 0), vae.decoder_reach(CONFIG)
    assert middle - reach <= seen.min() <= middle - reach + 2
    assert middle + reach - 2 <= seen.max() <= middle + reach

    audio = 0.1 * jax.random.normal(jax.random.key(3), (1, 2 * middle * hop))
    slope = jax.grad(lambda x: jnp.sum(vae.posterior(params, CONFIG, x)[0][:, middle] ** 2))(audio)
    seen, reach = np.flatnonzero(np.abs(slope[0]) > 0), vae.encoder_reach(CONFIG)
    assert middle * hop - reach <= seen.min() <= middle * hop - reach + 2 * hop
    assert (middle + 1) * hop + reach - 2 * hop <= seen.max() < (middle + 1) * hop + reach


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_stage_takes_it(remat: Remat) -> None:
    """Both sides get gradients; recomputing stages changes none of them."""
    model = replace(CONFIG, codec=replace(CODEC, remat=remat))
    stage = VAEStage(
        model=model,
        discriminator=discriminators.TINY,
        resolutions=((256, 64),),
        adversarial_start=0,
        adversarial_ramp=1,
    )
    params = stage.init(jax.random.key(0))
    batch = {"audio": 0.3 * jax.random.normal(jax.random.key(1), (2, 4800))}
    grads, metrics = jax.jit(stage.gradients)(params, batch, jax.random.key(2), jnp.int32(5))
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(
        np.any(leaf) for name in ("encoder", "decoder") for leaf in jax.tree.leaves(grads["model"][name])
    )
    plain = replace(stage, model=CONFIG)
    expected, _ = jax.jit(plain.gradients)(params, batch, jax.random.key(2), jnp.int32(5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-3), grads, expected)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="2 rates, 3 channels"):
        replace(CODEC, encoder_channels=(4, 8, 8))
    with pytest.raises(UserError, match="different products"):
        replace(CODEC, decoder_rates=(3, 4))
    with pytest.raises(UserError, match="2 taps would skip"):
        replace(CODEC, encoder_kernels=(5, 2))
    with pytest.raises(UserError, match="odd"):
        replace(CODEC, residual_kernels=(3, 4))
    with pytest.raises(UserError, match="multiple of 6"):
        vae.encode(vae.init(CONFIG, jax.random.key(0)), CONFIG, jnp.zeros((1, 100)))
