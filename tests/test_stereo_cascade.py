"""A whole cascade in 44.1 kHz stereo: clips, streams, batches, continuation and mending of the user's own sound."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from helpers.tiny import tiny_networks

from melody_jax import audio
from melody_jax.audio_format import AudioFormat
from melody_jax.errors import UserError
from melody_jax.models import channels, vae
from melody_jax.release import load_tokenizer
from melody_jax.sampling.cascade import Melody

RATE = 44_100
SETTINGS = {"steps": 1, "guidance_scale": 1.0, "lm_guidance_scale": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def stereo() -> Melody:
    networks = tiny_networks()
    codec = dataclasses.replace(vae.TINY.codec, sample_rate=RATE, channels=2, frame_hop=441, n_fft=2048)
    config = dataclasses.replace(vae.TINY, codec=codec)
    networks["vae"] = (vae.init(config, jax.random.key(1)), config)
    params, configs = ({name: part[i] for name, part in networks.items()} for i in (0, 1))
    return Melody(params, configs, load_tokenizer(".", configs["mulan"].text.vocab_size), {})


@pytest.fixture(scope="module")
def source() -> np.ndarray:
    """Four seconds of noise on the left and a quiet tone on the right."""
    rng = np.random.default_rng(0)
    time = np.arange(4 * RATE) / RATE
    return np.stack([rng.normal(0, 0.1, 4 * RATE), 0.01 * np.sin(2 * np.pi * 500 * time)], axis=1).astype(
        "f4"
    )


def test_the_format_is_that_of_the_autoencoder(stereo: Melody) -> None:
    assert (stereo.sample_rate, stereo.channels) == (RATE, 2)
    assert stereo.window_seconds == pytest.approx(3.2)
    (clip,) = stereo.generate("piano", seconds=1.5, **SETTINGS)
    assert clip.shape == (round(1.5 * RATE), 2)
    assert clip.dtype == np.float32
    assert not clip[[0, -1]].any()
    assert np.abs(clip[:, 0] - clip[:, 1]).max() > 0


def test_streams_and_batches_are_the_clip(stereo: Melody) -> None:
    (clip,) = stereo.generate("piano", seconds=4.5, **SETTINGS)
    parts = list(stereo.stream("piano", seconds=4.5, **SETTINGS))
    np.testing.assert_array_equal(np.concatenate(parts), clip)
    both = stereo.generate(["techno", "piano"], seconds=4.5, **SETTINGS | {"seed": [9, 3]})
    np.testing.assert_allclose(both[1], clip, atol=1e-4)


def test_continuation_and_mending_keep_the_rest_to_the_bit(stereo: Melody, source: np.ndarray) -> None:
    (longer,) = stereo.generate("piano", source=source, seconds=5.0, **SETTINGS)
    assert longer.shape == (5 * RATE, 2)
    np.testing.assert_array_equal(longer[: 4 * RATE], source)
    assert np.abs(longer[4 * RATE + 1_000 : -1_000]).max() > 0
    (mended,) = stereo.generate("piano", source=source, regions=((1.0, 1.5),), **SETTINGS)
    np.testing.assert_array_equal(mended[:RATE], source[:RATE])
    np.testing.assert_array_equal(mended[round(1.5 * RATE) :], source[round(1.5 * RATE) :])
    assert np.abs(mended[RATE : round(1.5 * RATE)] - source[RATE : round(1.5 * RATE)]).max() > 1e-3


def test_a_file_is_read_in_the_same_format(stereo: Melody, source: np.ndarray, tmp_path: Path) -> None:
    """At another rate; its channels stay apart, and a mono file fills both."""
    path = tmp_path / "left.wav"
    half = source[::2] * [1, 0]
    audio.write(path, half, RATE // 2)
    (longer,) = stereo.generate("", source=path, seconds=5.0, **SETTINGS)
    assert longer.shape == (5 * RATE, 2)
    assert not longer[: 4 * RATE, 1].any()
    with soundfile.SoundFile(tmp_path / "mono.wav", "w", RATE, 1) as file:
        file.write(source[:, 0])
    (longer,) = stereo.generate("piano", source=tmp_path / "mono.wav", seconds=5.0, **SETTINGS)
    np.testing.assert_array_equal(longer[: 4 * RATE, 0], longer[: 4 * RATE, 1])
    for wrong in (np.zeros((RATE, 3), np.float32), np.zeros((100, 2), np.float32)):
        with pytest.raises(
            UserError, match=r"must be \(T,\) or \(T, 2\), finite and at least a second at 44.1 kHz"
        ):
            stereo.generate("piano", source=wrong, seconds=5.0)


def test_the_best_of_several_is_heard_in_mono(stereo: Melody) -> None:
    (clip,) = stereo.generate("piano", seconds=1.5, best_of=2, **SETTINGS)
    assert clip.shape == (round(1.5 * RATE), 2)


@pytest.mark.parametrize(("rate", "count"), [(48_000, 2), (44_100, 1), (24_000, 2)])
def test_other_networks_hear_24_khz_mono(rate: int, count: int) -> None:
    """A tone stays where it is, at the mean of its levels."""
    time = np.arange(2 * rate) / rate
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    sound = tone if count == 1 else np.stack([tone, 0 * tone], axis=1)
    stored = AudioFormat(sample_rate=rate, channels=count)
    mono = np.asarray(channels.default_format(jnp.asarray(sound[None]), stored))[0]
    assert mono.shape == (48_000,)
    expected = np.sin(2 * np.pi * 440 * np.arange(48_000) / 24_000) / count
    np.testing.assert_allclose(mono[1_000:-1_000], expected[1_000:-1_000], atol=2e-3)


def test_channels_that_cancel_are_not_silence() -> None:
    """The loudest is used, item by item, as where files are mixed."""
    noise = np.random.default_rng(0).normal(0, 0.1, 9_600).astype(np.float32)
    sounds = np.stack([np.stack([noise, -noise], 1), np.stack([noise, noise], 1)])
    mono = channels.default_format(jnp.asarray(sounds), AudioFormat(channels=2))
    np.testing.assert_allclose(mono, [noise, noise], atol=1e-6)
