"""Two channels and other sample rates in the autoencoder: shapes, mono that stays mono, losses of the stereo image."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jitted import vae

from melody_jax.errors import UserError
from melody_jax.models import channels, discriminators, hifigan
from melody_jax.models.stft_config import StftCodecConfig
from melody_jax.models.vae import VAEConfig
from melody_jax.training.audio_losses import views
from melody_jax.training.stages.vae import VAEStage

STEREO_44K = {"sample_rate": 44_100, "channels": 2, "frame_hop": 441, "n_fft": 2048}
STFT = VAEConfig(latent_width=8, codec=replace(vae.TINY.codec, **STEREO_44K))
TWO_WINDOWS = VAEConfig(
    latent_width=8, codec=replace(vae.TINY_TWO_WINDOWS.codec, **STEREO_44K | {"low_window": 4096})
)
PHASED = replace(STFT, codec=replace(STFT.codec, phase=True))
HIFIGAN = VAEConfig(
    latent_width=8,
    codec=hifigan.HiFiGANConfig(
        sample_rate=44_100, channels=2, encoder_rates=(42, 42), encoder_channels=(4, 4), encoder_kernels=(43, 43),
        decoder_rates=(42, 42), decoder_channels=(4, 4), decoder_kernels=(43, 43),
    ),
)  # fmt: skip
CONFIGS = {"stft": STFT, "two windows": TWO_WINDOWS, "phase": PHASED, "hifigan": HIFIGAN}


def noise(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(0, 0.1, shape), jnp.float32)


def test_rows_and_features_are_arranged_back() -> None:
    audio = noise(3, 20, 2)
    rows = channels.to_rows(audio)
    np.testing.assert_array_equal(rows, np.stack([item[:, c] for item in np.asarray(audio) for c in (0, 1)]))
    np.testing.assert_array_equal(channels.from_rows(rows, 2), audio)
    frames = noise(6, 5, 4)
    features = channels.rows_to_features(frames, 2)
    np.testing.assert_array_equal(features[1, :, :4], frames[2])
    np.testing.assert_array_equal(features[1, :, 4:], frames[3])
    np.testing.assert_array_equal(channels.features_to_rows(features, 2), frames)
    mono = noise(3, 20)
    np.testing.assert_array_equal(channels.from_rows(channels.to_rows(mono), 1), mono)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_round_trip_has_both_channels(name: str) -> None:
    config = CONFIGS[name]
    assert (config.hop, str(config.audio_format)) == (1764, "44.1 kHz stereo")
    params = vae.init(config, jax.random.key(0))
    audio = noise(2, 4 * 1764, 2)
    latents = vae.encode(params, config, audio)
    assert latents.shape == (2, 4, 8)
    assert vae.decode(params, config, latents).shape == audio.shape
    swapped = vae.encode(params, config, audio[..., ::-1])
    assert float(jnp.abs(swapped - latents).max()) > 1e-3, "the channels are told apart"
    for wrong in (audio[..., 0], audio[..., :1]):
        with pytest.raises(UserError, match="this autoencoder takes 2 channels"):
            vae.encode(params, config, wrong)


def test_equal_magnitudes_give_equal_channels() -> None:
    """The phase search of a channel does not depend on where it stands: mono stays mono to the bit."""
    params = vae.init(TWO_WINDOWS, jax.random.key(0))
    for half in ("kernel", "bias"):
        out = params["decoder"]["ends"]["out"][half]
        params["decoder"]["ends"]["out"][half] = jnp.concatenate([jnp.split(out, 2, axis=-1)[0]] * 2, axis=-1)
    wave = vae.decode(params, TWO_WINDOWS, noise(1, 4, 8))
    assert float(jnp.abs(wave).max()) > 0
    np.testing.assert_array_equal(wave[..., 0], wave[..., 1])


def test_losses_see_the_stereo_image() -> None:
    """The sum of the channels is silent where they cancel, their difference where they are equal."""
    left = noise(1, 2_000)
    rows = views(jnp.stack([left, -left], axis=-1))
    np.testing.assert_allclose(rows[2], 0, atol=1e-7)
    np.testing.assert_allclose(rows[3], 2**0.5 * left[0], rtol=1e-5)
    stage = VAEStage(model=STFT, resolutions=((512, 120),))
    equal = jnp.stack([left, left], axis=-1)
    opposite = jnp.stack([left, -left], axis=-1)
    _, terms = stage._spectral_loss(opposite, equal)
    assert float(terms["linear"]) > 0.01, "each channel alone has the same magnitudes"


@pytest.mark.parametrize("model", [STFT, HIFIGAN], ids=["stft", "hifigan"])
def test_every_network_learns_from_both_channels(model: VAEConfig) -> None:
    stage = VAEStage(
        model=model, discriminator=discriminators.TINY, resolutions=((512, 120),), adversarial_start=0,
        adversarial_crop=4_096, mel_weight=1.0,
    )  # fmt: skip
    params = stage.init(jax.random.key(0))
    assert params["discriminator"]["period_2"]["layers"]["0"]["kernel"].shape[1] == 2
    batch = {"audio": noise(2, 4 * 1764, 2)}
    gradients, metrics = jax.jit(stage.gradients)(params, batch, jax.random.key(1), jnp.int32(1))
    assert all(np.isfinite(float(value)) for value in metrics.values())
    for leaf in jax.tree.leaves(gradients["discriminator"]):
        assert float(jnp.abs(leaf).max()) > 0
    assert (
        float(jnp.abs(gradients["model"]["encoder"]["ends"]["entry"]["kernel"]).max() if model is STFT else 1)
        > 0
    )


@pytest.mark.parametrize(
    ("codec", "says"),
    [
        ({"sample_rate": 44_100}, "960 samples per latent do not divide the 1764 of a semantic token"),
        ({"sample_rate": 44_101}, "it must be a multiple of 25"),
        ({"frame_hop": 0}, "frame_hop 0: it must be at least 1"),
        ({"downsample": 0}, "downsample 0: it must be at least 1"),
    ],
)
def test_latents_and_tokens_keep_step(codec: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        VAEConfig(codec=replace(vae.TINY.codec, **codec))


@pytest.mark.parametrize("wrong", [{"channels": 3}, {"channels": 0}, {"sample_rate": 100}])
def test_impossible_audio_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="the first must be from 8000 to 192000, the second 1 or 2"):
        StftCodecConfig(**wrong)


def test_one_file_names_sample_rates() -> None:
    """Whoever adds a rate finds the one place for it. The tables of MPEG audio are its format's, not ours."""
    rates = re.compile(r"\b(16_?000|22_?050|24_?000|32_?000|44_?100|48_?000|96_?000)\b")
    package = Path(vae.__file__).parents[1]
    named = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if rates.search(line) and "--" not in line
    }
    assert named <= {"audio_format.py", "mpeg_audio.py"}, named
