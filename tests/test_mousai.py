"""Moûsai at `tiny` size with random weights: its autoencoder, and clips from words, whatever the batch."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from helpers.stages import STAGES, Batches
from helpers.swapped import assert_ground_truth_enters_each_stage
from helpers.tiny import random_denoiser, tiny_networks
from helpers.word_systems import (
    SETTINGS,
    assert_clips_do_not_depend_on_their_batch,
    assert_words_guidance_and_candidates_matter,
)

from melody_jax import load, release
from melody_jax.cli import run
from melody_jax.errors import UserError
from melody_jax.models import diffusion_codec, unet1d
from melody_jax.models.conditioning import TextCondition
from melody_jax.models.diffusion_codec import TINY, DiffusionCodecConfig
from melody_jax.release import load_tokenizer
from melody_jax.sampling.passes import Evaluations
from melody_jax.sampling.request import make_requests
from melody_jax.systems.mousai import Mousai
from melody_jax.training.stages.text_diffusion import TextDiffusionStage

GENERATOR: TextDiffusionStage = STAGES["latent_generator"]
MODEL = dataclasses.replace(GENERATOR.model, text=TextCondition(width=32, length=16))
STEREO = dataclasses.replace(
    TINY,
    codec=dataclasses.replace(TINY.codec, channels=2),
    decoder=dataclasses.replace(TINY.decoder, latent_dim=1028),
)


def codec(config: DiffusionCodecConfig = TINY) -> Any:
    """Parameters whose decoder follows its latents."""
    params = diffusion_codec.init(config, jax.random.key(0))
    return params | {
        "decoder": jax.tree.map(jnp.asarray, random_denoiser(config.decoder)),
        "latent_mean": jnp.full(8, 0.1),
        "latent_scale": jnp.full(8, 0.5),
    }


def networks() -> dict[str, tuple[Any, Any]]:
    """Parameters and config of each network."""
    return {
        "mulan": tiny_networks()["mulan"],
        "latent_generator": (random_denoiser(MODEL), MODEL),
        "dmae": (codec(), TINY),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release")
    for name, (params, config) in networks().items():
        release.save_network(path / "some", name, params, config, {})
    return path


@pytest.fixture(scope="module")
def system(folder: Path) -> Mousai:
    return load("some", system="mousai", folder=folder)


@pytest.mark.parametrize(("config", "shape"), [(TINY, (2, 4_800)), (STEREO, (2, 4_800, 2))])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_frames_are_audio(config: DiffusionCodecConfig, shape: tuple[int, ...], power: float) -> None:
    config = dataclasses.replace(config, power=power)
    audio = 0.1 * jax.random.normal(jax.random.key(0), shape)
    frames = diffusion_codec.to_frames(config, audio)
    assert frames.shape == (2, 20, config.decoder.latent_dim)
    np.testing.assert_allclose(diffusion_codec.from_frames(config, frames), audio, atol=1e-5)
    louder = diffusion_codec.to_frames(config, 4 * audio)
    np.testing.assert_allclose(louder, 4**power * frames, rtol=1e-3, atol=1e-3)


def test_latents_are_bounded_and_normalised() -> None:
    params = codec()
    audio = 10 * jax.random.normal(jax.random.key(0), (2, 4_800))
    raw = diffusion_codec.encode_raw(params, TINY, audio)
    assert raw.shape == (2, 5, 8)
    assert np.abs(raw).max() <= 1
    latents = diffusion_codec.encode(params, TINY, audio)
    np.testing.assert_allclose(latents, (raw - 0.1) / 0.5, rtol=1e-5)
    np.testing.assert_allclose(diffusion_codec.denormalise(params, latents), raw, atol=1e-6)
    with pytest.raises(UserError, match="1000 samples: the encoder needs a positive multiple of 960"):
        diffusion_codec.encode(params, TINY, audio[:, :1_000])


def test_the_decoder_follows_the_latents() -> None:
    params = codec()
    noisy = jax.random.normal(jax.random.key(0), (1, 20, 514))
    raw = jax.random.uniform(jax.random.key(1), (1, 5, 8))
    angle = jnp.ones((1, 20))
    evaluate = jax.jit(lambda raw: diffusion_codec.velocity(params, TINY, noisy, angle, raw))
    assert np.abs(evaluate(raw) - evaluate(raw.at[0, 2].add(1.0))).max() > 1e-3


def test_clips_do_not_depend_on_their_batch(system: Mousai) -> None:
    assert_clips_do_not_depend_on_their_batch(system)


def test_ground_truth_enters_each_stage(system: Mousai) -> None:
    assert_ground_truth_enters_each_stage(system, ["dmae", "text"])


def test_words_guidance_and_candidates_matter(system: Mousai) -> None:
    assert_words_guidance_and_candidates_matter(system)


def test_what_it_lacks_is_refused(system: Mousai) -> None:
    with pytest.raises(UserError, match=r"seconds is 0\.7; mousai makes clips of at most 0\.64 s"):
        system.generate("piano", seconds=0.7)
    with pytest.raises(UserError, match=r"top_p is 0\.5: mousai has no such setting"):
        system.generate("piano", seconds=0.5, top_p=0.5)
    (request,) = make_requests("piano", {"seconds": 0.5, "steps": 3, "solver": "heun"})
    assert system.count_passes(request) == Evaluations(0, 10)


def test_from_the_command_line(folder: Path) -> None:
    arguments = ["--folder", str(folder), "--model", "some", "--seconds", "0.5", "--steps", "1"]
    out = folder / "song.wav"
    run(["sample", "a calm piano", "--system", "mousai", *arguments, "--out", str(out)])
    assert soundfile.info(out).frames == 12_000
    with pytest.raises(UserError, match="load it with --system mousai"):
        run(["sample", "a calm piano", *arguments, "--out", str(out)])
    with pytest.raises(UserError, match="distilled: mousai has no such option of loading"):
        load("some", system="mousai", folder=folder, distilled=True)
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"id": "a", "prompt": "piano"}\n{"id": "b", "prompt": "drums", "seed": 7}\n')
    job = [
        "sample",
        "--system",
        "mousai",
        *arguments,
        "--prompts",
        str(prompts),
        "--out",
        str(folder / "clips"),
    ]
    run(job)
    assert [soundfile.info(folder / "clips" / f"{name}.wav").frames for name in "ab"] == [12_000, 12_000]


def test_networks_that_do_not_fit_are_refused() -> None:
    made = networks()
    params, configs = ({name: part[i] for name, part in made.items()} for i in (0, 1))
    tokenizer = load_tokenizer(".", configs["mulan"].text.vocab_size)
    refining = dataclasses.replace(configs["latent_generator"], lower_ratio=2)
    wide = dataclasses.replace(configs["latent_generator"], latent_dim=4)
    for changed, says in ((refining, "refines frames of a lower rate"), (wide, "writes 4 channels")):
        with pytest.raises(UserError, match=says):
            Mousai(params, configs | {"latent_generator": changed}, {}, tokenizer)


def test_guided_latents_stay_within_what_the_encoder_makes(system: Mousai) -> None:
    """Latents far outside of [-1, 1] sound as those at its ends."""
    loud = jax.tree.map(lambda leaf: leaf, system.params)
    far = {"latent_mean": jnp.full(8, 50.0), "latent_scale": jnp.full(8, 0.0)}
    near = {"latent_mean": jnp.full(8, 1.0), "latent_scale": jnp.full(8, 0.0)}
    clips = []
    for statistics in (far, near):
        params = loud | {"dmae": loud["dmae"] | statistics}
        changed = Mousai(params, system.configs, {}, system.tokenizer)
        clips += changed.generate("piano", seconds=0.5, **SETTINGS)
    np.testing.assert_array_equal(*clips)


def test_training_whitens_the_latents() -> None:
    stage = STAGES["dmae"]
    batch = next(Batches(stage))
    params = jax.jit(stage.init)(jax.random.key(0))
    shown = jax.jit(stage.evaluate)(params, batch, jax.random.key(1))
    assert shown["loss"] == pytest.approx(1.0, abs=0.4)
    assert {"latent_std", "frame_std", "loss_at_0.2"} <= shown.keys()
    model, _ = stage.finish(params["model"], iter([batch]), jax.random.key(2))
    latents = diffusion_codec.encode(model, TINY, jnp.asarray(batch["audio"]))
    np.testing.assert_allclose(latents.mean((0, 1)), 0.0, atol=1e-3)
    np.testing.assert_allclose(latents.std((0, 1)), 1.0, atol=1e-2)
    with pytest.raises(UserError, match=r"data\.crop_samples is 9600; 64 frames are 15360"):
        stage.evaluate(params, {"audio": jnp.asarray(batch["audio"][:, :9_600])}, jax.random.key(1))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"latent_width": 4}, r"decoder\.lower_dim is 8; this codec needs 4"),
        (
            {"codec": dataclasses.replace(TINY.codec, n_fft=1024)},
            r"decoder\.latent_dim is 514; this codec needs 1026",
        ),
        ({"power": 0.0}, "power is 0"),
        ({"frame_scale": 0.0}, "frame_scale is 0"),
        (
            {"decoder": dataclasses.replace(TINY.decoder, semantic_tokens=8)},
            "the decoder follows tokens; it must follow the latents alone",
        ),
    ],
)
def test_impossible_codecs_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        dataclasses.replace(TINY, **changes)


def test_a_network_without_tokens_attends_to_none() -> None:
    with pytest.raises(
        UserError, match="semantic_tokens is 0; cross_attention and aligned_tokens need tokens"
    ):
        dataclasses.replace(unet1d.TINY, semantic_tokens=0)
