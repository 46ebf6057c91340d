"""The model that ships: there, small, whole, and making sound."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jitted import vae

import melody_jax
from melody_jax import release
from melody_jax.evaluation.fidelity import bass_agreement, steady_bass
from melody_jax.release_folder import WEIGHTS
from melody_jax.sampling.cascade import NETWORKS
from melody_jax.sampling.decode import context

MINI = WEIGHTS / "mini"


def test_it_fits_in_80_megabytes():
    assert sum(file.stat().st_size for file in MINI.iterdir()) <= 80_000_000


def test_it_says_what_it_is_and_what_it_was_made_with():
    assert (MINI / "README.md").read_text()
    assert (MINI / "ATTRIBUTION.md").read_text()
    for name in (*NETWORKS, "tokenizer", "dpd_distilled"):
        assert release.read_description(MINI, name)["metrics"]


def test_the_distilled_diffusion_belongs_to_the_other():
    distilled = melody_jax.load("mini", networks=("dpd", "vae"), distilled=True)
    diffusion = melody_jax.load("mini", networks=("dpd", "vae"))
    config = distilled.configs["dpd"]
    assert config.guidance_range == (1.0, 4.0)
    assert dataclasses.replace(config, guidance_range=None) == diffusion.configs["dpd"]
    kernels = [melody.params["dpd"]["inputs"]["kernel"] for melody in (distilled, diffusion)]
    change = np.std(kernels[0] - kernels[1]) / np.std(kernels[1])
    assert 0.001 < change < 0.5  # of the learned kind: neither nothing nor another network


@pytest.fixture(scope="module")
def melody():
    return melody_jax.load("mini", networks=(*NETWORKS, "tokenizer"))


def test_prompts_make_sound(melody):
    waves = np.stack(
        melody.generate(["a calm solo piano piece", "fast heavy metal"], seconds=10, steps=2, seed=3)
    )
    assert waves.shape == (2, 240_000)
    assert np.isfinite(waves).all()
    assert np.abs(waves).max() <= 1
    seconds = waves.reshape(2, 10, 24_000)
    assert (seconds.std(axis=-1) > 1e-3).sum() >= 12  # rests are allowed, silence is not
    assert np.abs(np.corrcoef(waves)[0, 1]) < 0.5


def test_the_same_seed_gives_the_same_bits(melody):
    first, second = (
        melody.generate(["slow blues", "slow blues"], seconds=2, steps=2, seed=[5, 5]) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_an_item_does_not_depend_on_its_batch(melody):
    prompts = ["a calm solo piano piece", "fast heavy metal"]
    together = melody.generate(prompts, seconds=10, steps=2, seed=[3, 9])
    alone = melody.generate(prompts[1:], seconds=10, steps=2, seed=[9])
    np.testing.assert_allclose(together[1:], alone, atol=1e-4)


def bass_line() -> np.ndarray:
    """Eight notes of a bass with five harmonics, half a second each, under a chord: float32 (96,000,)."""
    time = np.arange(96_000) / 24_000
    notes = 55 * 2 ** (np.array([0, 3, 5, 7, 0, -2, 5, 3]) / 12)
    phase = 2 * np.pi * np.cumsum(np.repeat(notes, 12_000)) / 24_000
    envelope = np.exp(-3 * (time % 0.5))
    bass = sum(np.sin(h * phase) / h for h in range(1, 6)) * envelope
    chord = sum(np.sin(2 * np.pi * f * time) for f in (220.0, 261.6, 329.6))
    return (0.15 * bass + 0.05 * chord).astype(np.float32)


def test_its_autoencoder_keeps_the_bass() -> None:
    original = bass_line()
    networks = melody_jax.load("mini", networks=("vae",))
    params, config = networks.params["vae"], networks.configs["vae"]
    decoded = vae.decode(params, config, vae.encode(params, config, jnp.asarray(original[None])))
    assert bass_agreement(np.asarray(decoded[0]), original) > 0.6


@pytest.mark.parametrize("controls", [{}, {"bpm": 128.0, "key": "A minor"}])
def test_prompts_make_bass(melody, controls: dict) -> None:
    (wave,) = melody.generate("driving techno with a deep bass", seconds=10, steps=2, seed=3, **controls)
    assert steady_bass(wave) > 0.2


def test_a_stream_begins_with_the_first_window(melody) -> None:
    frames = melody.configs["dpd"].frames
    window = melody._decoder_window(melody.configs["dpd"].frames // melody.configs["dpd"].chunks)
    assert 2 * context(melody.configs["vae"]) < window < frames
