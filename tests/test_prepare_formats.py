"""Preparing stereo recordings for networks in stereo, and codes in place of latents."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arrays import random_like
from helpers.preparation import captions, prepared, write_encoders

from melody_jax import audio, loudness, release
from melody_jax.audio_format import AudioFormat
from melody_jax.config import DataConfig, load_config
from melody_jax.data import pipeline
from melody_jax.data.prepare import prepare
from melody_jax.data.records import open_shards
from melody_jax.errors import UserError
from melody_jax.models import vae
from melody_jax.models.vae import TINY as TINY_VAE

pytest.importorskip("apache_beam", reason="melody prepare needs the extra beam")


@pytest.fixture(scope="module")
def stereo_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features and shards of a stereo recording at 44.1 kHz with a tone on the left only, as an MP3."""
    source = tmp_path_factory.mktemp("stereo")
    time = np.arange(3 * 44_100) / 44_100
    tone = 0.3 * np.sin(2 * np.pi * 440 * time)
    audio.write(source / "left.mp3", np.stack([tone, 0 * tone], axis=1).astype(np.float32), 44_100)
    captions(source / "c.jsonl", [("left.mp3", "a tone")])
    stereo = tmp_path_factory.mktemp("stereo_networks")
    write_encoders(stereo)
    codec = dataclasses.replace(TINY_VAE.codec, sample_rate=44_100, channels=2, frame_hop=441, n_fft=2048)
    model = dataclasses.replace(TINY_VAE, codec=codec)
    params = random_like(lambda k: vae.init(model, k))
    params |= {"latent_mean": jnp.zeros(8), "latent_scale": jnp.ones(8)}
    release.save_network(stereo, "vae", params, model, {})
    out = tmp_path_factory.mktemp("stereo_features")
    prepare(prepared(source, str(stereo), out))
    return out


def test_stereo_keeps_its_channels_apart_through_prepare(stereo_features: Path) -> None:
    source = open_shards(stereo_features / "audio")
    wave = audio.decode_flac(source[0]["audio"].tobytes())
    assert audio.flac_info(source[0]["audio"].tobytes())[1] == AudioFormat(sample_rate=44_100, channels=2)
    left, right = np.sqrt(np.mean(wave.astype(float) ** 2, axis=0))
    assert 20 * np.log10(left / max(right, 1e-9)) > 60
    assert loudness.integrated(wave, 44_100) == pytest.approx(-16, abs=0.1)
    record = open_shards(stereo_features, "features")[0]
    assert record["semantic_tokens"].shape[0] == record["latents"].shape[0] == len(wave) // 1764


def test_training_reads_any_format_that_is_no_less(stereo_features: Path) -> None:
    folder = str(stereo_features / "audio")
    data = DataConfig(folder=(folder,), validation_folder=(folder,), batch_size=2, crop_samples=8_820)
    stereo = AudioFormat(sample_rate=44_100, channels=2)
    batch = next(pipeline.TrainingBatches(data, "audio", audio_format=stereo))["audio"]
    assert batch.shape == (2, 8_820, 2)
    assert np.abs(batch[..., 1]).max() < 1e-3 * np.abs(batch[..., 0]).max()
    mono = next(pipeline.TrainingBatches(data, "audio"))["audio"]
    assert mono.shape == (2, 8_820)
    peak = np.abs(np.fft.rfft(mono[0] * np.hanning(8_820))).argmax() * 24_000 / 8_820
    assert peak == pytest.approx(440, abs=3)


@pytest.fixture(scope="module")
def code_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of noise by an autoencoder with a quantiser."""
    source = tmp_path_factory.mktemp("noise")
    noise = np.random.default_rng(0).normal(0, 0.1, 4 * 24_000).astype(np.float32)
    audio.write(source / "a.wav", noise)
    captions(source / "c.jsonl", [("a.wav", "noise")])
    released = tmp_path_factory.mktemp("code_networks")
    write_encoders(released)
    params = vae.init(vae.TINY_CODES, jax.random.key(0))
    params |= {"codebooks": jax.random.normal(jax.random.key(1), params["codebooks"].shape)}
    release.save_network(released, "vae", params, vae.TINY_CODES, {})
    out = tmp_path_factory.mktemp("code_features")
    prepare(prepared(source, str(released), out))
    return out


def test_codes_take_the_place_of_latents(code_features: Path) -> None:
    record = open_shards(code_features, "features")[0]
    assert "latents" not in record
    assert record["codes"].shape == (len(record["semantic_tokens"]), 3)
    assert 0 <= record["codes"].min() <= record["codes"].max() < 16
    stage = load_config("coarse_tiny").stage
    folder = (str(code_features),)
    data = DataConfig(folder=folder, validation_folder=folder, batch_size=2, window_tokens=16)
    batch = next(pipeline.TrainingBatches(data, "features", shape=stage.features))
    assert batch["codes"].shape == (2, 16, 3)
    prompt, codes = stage.sequence(batch)
    np.testing.assert_array_equal(
        prompt, np.concatenate([batch["prefix_tokens"], batch["semantic_tokens"]], 1)
    )
    np.testing.assert_array_equal(codes, batch["codes"][:, :, :2].reshape(2, -1))
    fine = load_config("fine_tiny").stage
    prompt, codes = fine.sequence(batch)
    np.testing.assert_array_equal(prompt, batch["codes"][:, :, :2].reshape(2, -1))
    np.testing.assert_array_equal(codes, batch["codes"][:, :, 2])


def test_networks_and_features_of_the_other_kind_are_refused(
    code_features: Path, stereo_features: Path
) -> None:
    wanted = {
        stereo_features: (
            load_config("coarse_tiny").stage,
            "code levels 0, and this stage's network needs at least 2",
        ),
        code_features: (load_config("dpd_tiny").stage, "latent channels 0, and this stage's network needs 8"),
    }
    for folder, (stage, says) in wanted.items():
        data = DataConfig(folder=(str(folder),), window_tokens=stage.features.window_tokens)
        with pytest.raises(UserError, match=says):
            pipeline.TrainingBatches(data, "features", shape=stage.features)
