"""The autoencoder whose latents are log mel magnitudes."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.jitted import vae

from melody_jax import release, spectral
from melody_jax.errors import UserError
from melody_jax.models import discriminators, stft_config
from melody_jax.models.hifigan import HiFiGANConfig
from melody_jax.models.rvq import QuantiserConfig
from melody_jax.training.stages.vae import VAEStage

MEL = vae.TINY_MEL
STEREO = replace(MEL, codec=replace(MEL.codec, channels=2))


def noise(*shape: int) -> jax.Array:
    return 0.1 * jax.random.normal(jax.random.key(1), shape)


def test_latents_are_normalised_log_mels_and_nothing_is_learned_for_them() -> None:
    params = vae.init(MEL, jax.random.key(0))
    assert "encoder" not in params
    params |= {"latent_mean": jnp.full(16, -1.0), "latent_scale": jnp.full(16, 2.0)}
    audio = noise(2, 4_800)
    bands = 0.4 * spectral.log_mel(audio, 1024, 240, 16)
    np.testing.assert_allclose(vae.encode(params, MEL, audio), (bands + 1) / 2, rtol=1e-5, atol=1e-5)
    assert vae.decode(params, MEL, vae.encode(params, MEL, audio)).shape == audio.shape


def test_bands_of_two_channels_stand_side_by_side_and_mono_stays_mono() -> None:
    params = vae.init(STEREO, jax.random.key(0))
    left = noise(1, 4_800)
    silent = jnp.zeros_like(left)
    latents = vae.encode(params, STEREO, jnp.stack([left, silent], axis=-1))
    one = vae.encode(
        vae.init(replace(MEL, latent_width=8), jax.random.key(0)), replace(MEL, latent_width=8), left
    )
    np.testing.assert_allclose(latents[..., :8], one, atol=1e-5)
    assert latents[..., 8:].max() < -4  # the floor of the logarithm
    mono = vae.encode(params, STEREO, jnp.stack([left, left], axis=-1))
    np.testing.assert_array_equal(mono[..., :8], mono[..., 8:])


def test_encoder_reach_by_gradient() -> None:
    params = vae.init(MEL, jax.random.key(0))
    reach = vae.encoder_reach(MEL)
    slope = jax.grad(lambda x: jnp.sum(vae.encode(params, MEL, x)[:, 10] ** 2))(noise(1, 21 * 240))
    seen = np.flatnonzero(np.abs(slope[0]) > 0)
    assert 2400 - reach <= seen.min() < 2400 - reach + 4  # a window begins with its smallest weights
    assert 2640 + reach >= seen.max() > 2640 + reach - 4


def test_a_vocoder_learns_and_is_whitened_by_band(tmp_path: Any) -> None:
    stage = VAEStage(
        model=MEL,
        discriminator=discriminators.TINY,
        resolutions=((1024, 240), (256, 60)),
        adversarial_start=1_000,
        adversarial_crop=4_800,
    )
    time = np.arange(9_600) / 24_000
    pitches = 110 * 2 ** (np.arange(4)[:, None] / 3)
    audio = jnp.asarray(0.3 * np.sin(2 * np.pi * pitches * time), jnp.float32)
    params = stage.init(jax.random.key(0))
    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, number: jax.Array) -> tuple[Any, Any]:
        grads, _ = stage.gradients(params, {"audio": audio}, jax.random.key(2), number)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    evaluate = jax.jit(stage.evaluate)
    before = evaluate(params, {"audio": audio}, jax.random.key(3))
    for number in range(60):
        params, state = step(params, state, jnp.int32(number))
    after = evaluate(params, {"audio": audio}, jax.random.key(3))
    assert after["loss"] < 0.7 * before["loss"]
    assert "kl" not in after
    model, _ = stage.finish(params["model"], iter([{"audio": audio}]), jax.random.key(0))
    latents = vae.encode(model, MEL, audio)
    np.testing.assert_allclose(latents.mean((0, 1)), 0.0, atol=1e-3)
    np.testing.assert_allclose(latents.std((0, 1)), 1.0, atol=1e-2)
    release.save_network(tmp_path, "vae", model, MEL, {})
    assert release.load_network(tmp_path, "vae")[1] == MEL


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"quantiser": QuantiserConfig()}, "mel excludes quantiser and latent_clip"),
        ({"latent_clip": 1.0}, "mel excludes quantiser and latent_clip"),
        ({"codec": HiFiGANConfig()}, "mel needs a codec of spectra"),
        ({"codec": stft_config.TINY_TWO_WINDOWS}, "with a single window"),
        ({"codec": STEREO.codec, "latent_width": 7}, "latent_width 7: 2 channels must divide it"),
        ({"codec": replace(stft_config.TINY, n_fft=512)}, "n_fft 512 is less than the hop 960"),
    ],
)
def test_impossible_vocoders_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        replace(MEL, **changes)
