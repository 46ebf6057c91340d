"""Noise2Music at `tiny` size with random weights, and its training: clips from words, whatever the batch."""

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
from melody_jax.models import diffusion_codec, vae
from melody_jax.models.conditioning import LowerFrames, TextCondition
from melody_jax.release import load_tokenizer
from melody_jax.sampling.item_controls import item_keys
from melody_jax.sampling.passes import Evaluations
from melody_jax.sampling.request import Part, Scene, make_requests
from melody_jax.systems import noise2music
from melody_jax.systems.noise2music import Noise2Music
from melody_jax.training.stages.text_diffusion import TextDiffusionStage, lower_rate

GENERATOR: TextDiffusionStage = STAGES["generator"]
UPSAMPLER: TextDiffusionStage = STAGES["upsampler"]


def networks() -> dict[str, tuple[Any, Any]]:
    """Parameters and config of each network."""
    made = {
        "mulan": tiny_networks()["mulan"],
        "vae": (vae.init(vae.TINY_MEL, jax.random.key(0)), vae.TINY_MEL),
    }
    text = TextCondition(width=32, length=16)
    configs = {stage.name: dataclasses.replace(stage.model, text=text) for stage in (GENERATOR, UPSAMPLER)}
    return made | {name: (random_denoiser(config), config) for name, config in configs.items()}


def model(stage: TextDiffusionStage = GENERATOR, **changes: Any) -> dict[str, Any]:
    """The change of a stage that changes its network."""
    return {"model": dataclasses.replace(stage.model, **changes)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release")
    for name, (params, config) in networks().items():
        release.save_network(path / "n2m", name, params, config, {})
    return path


@pytest.fixture(scope="module")
def system(folder: Path) -> Noise2Music:
    return load("n2m", system="noise2music", folder=folder)


def test_clips_do_not_depend_on_their_batch(system: Noise2Music) -> None:
    assert_clips_do_not_depend_on_their_batch(system)


def test_ground_truth_enters_each_stage(system: Noise2Music) -> None:
    assert_ground_truth_enters_each_stage(system, ["vae", "upsampler", "text"])


def test_words_guidance_and_candidates_matter(system: Noise2Music) -> None:
    assert_words_guidance_and_candidates_matter(system)


def test_the_upsampler_refines_what_the_generator_wrote(system: Noise2Music) -> None:
    """Another generator changes the clip although seeds and words are the same."""
    (request,) = make_requests("piano", SETTINGS | {"seconds": 0.5})
    program = system.program(request)
    first = system.latents(program, *system.inputs([(request, 0)]))
    assert first.shape == (1, 64, 16)
    changed = jax.tree.map(lambda leaf: 1.1 * leaf, system.params["generator"])
    other = Noise2Music(system.params | {"generator": changed}, system.configs, {}, system.tokenizer)
    assert np.abs(first - other.latents(program, *other.inputs([(request, 0)]))).max() > 1e-3
    candidate = system.latents(program, *system.inputs([(request, 1)]))
    assert np.abs(first - candidate).max() > 1e-3


def test_the_upsampler_sees_the_low_rate_with_half_of_its_noise(
    system: Noise2Music, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trained with angles up to 0.6."""
    rows = [(request, 0) for request in make_requests(["piano", "drums"], SETTINGS | {"seconds": 0.5})]
    words, controls = system.inputs(rows)
    low = jax.random.normal(jax.random.key(3), (2, 16, 16))
    seen: list[LowerFrames] = []
    monkeypatch.setattr(noise2music, "follow_words", lambda *arguments: seen.append(arguments[-1]))
    networks = {name: system.params[name] for name in ("generator", "upsampler")}
    configs = tuple(system.configs[name] for name in networks)
    program = system.program(rows[0][0])
    noise2music._sample.__wrapped__(networks, configs, program, words, controls, low)
    (lower,) = seen
    for row, key in enumerate(item_keys(controls)):
        noise = jax.random.normal(jax.random.fold_in(key, noise2music.LOWER), (16, 16))
        np.testing.assert_allclose(lower.noisy[row], np.cos(0.3) * low[row] + np.sin(0.3) * noise, atol=1e-5)
    np.testing.assert_allclose(lower.angle, [0.3, 0.3])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"seconds": 0.7}, r"seconds is 0\.7; noise2music makes clips of at most 0\.64 s"),
        ({"story": (Scene(start=0.3, prompt="techno"),)}, "story is .*: noise2music has no such setting"),
        ({"temperature": 0.5}, "temperature is 0.5: noise2music has no such setting"),
        ({"negative_prompt": "drums"}, "negative_prompt is 'drums': noise2music has no such"),
        ({"bpm": 120.0}, "bpm is 120.0: noise2music has no such"),
        (
            {"guidance_scale": 1.0, "guidance_rescale": 0.3},
            r"guidance_rescale is 0\.3, but guidance_scale is 1",
        ),
    ],
)
def test_what_it_lacks_is_refused(system: Noise2Music, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        system.generate("piano", **{"seconds": 0.5} | settings)


def test_prompts_are_single_texts(system: Noise2Music) -> None:
    with pytest.raises(UserError, match="the prompt must be a text"):
        system.generate([[Part(text="piano"), Part(text="drums")]], seconds=0.5)
    with pytest.raises(UserError, match="is empty"):
        system.generate("", seconds=0.5)
    with pytest.raises(UserError, match="has 15 word pieces; at most 14 fit, shorten it"):
        system.generate("piano " * 15, seconds=0.5)
    with pytest.raises(UserError, match="makes whole clips only"):
        system.stream("piano")


def test_passes_follow_from_the_steps(system: Noise2Music) -> None:
    short, long = make_requests(["piano"] * 2, {"seconds": [0.3, 0.6], "steps": [5, 8]})
    assert system.count_passes(short) == Evaluations(0, 10)
    assert system.count_passes(long) == Evaluations(0, 16)


def test_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--folder", str(folder), "--model", "n2m", "--seconds", "0.5"]
    out = folder / "song.wav"
    run(["sample", "a calm piano", "--system", "noise2music", *arguments, "--steps", "1", "--out", str(out)])
    assert soundfile.info(out).frames == 12_000
    run(["nfe", "--system", "noise2music", *arguments])
    assert "n2m (noise2music), not guided" in capsys.readouterr().out
    with pytest.raises(UserError, match="load it with --system noise2music"):
        run(["sample", "a calm piano", *arguments, "--out", str(out)])


def test_networks_that_do_not_fit_are_refused() -> None:
    made = networks()
    params, configs = ({name: part[i] for name, part in made.items()} for i in (0, 1))
    tokenizer = load_tokenizer(".", configs["mulan"].text.vocab_size)
    cases = {
        "frames": configs | {"generator": dataclasses.replace(configs["generator"], frames=8)},
        "does not follow the words": configs
        | {"upsampler": dataclasses.replace(configs["upsampler"], text=TextCondition(width=8))},
        "writes 8 channels": configs | {"generator": dataclasses.replace(configs["generator"], latent_dim=8)},
    }
    for says, changed in cases.items():
        with pytest.raises(UserError, match=says):
            Noise2Music(params, changed, {}, tokenizer)


@pytest.mark.parametrize("stage", [GENERATOR, UPSAMPLER])
def test_only_the_network_learns_and_the_text_may_be_dropped(stage: TextDiffusionStage) -> None:
    batch = next(Batches(stage))
    params = stage.init(jax.random.key(0))
    grads, metrics = jax.jit(stage.gradients)(params, batch, jax.random.key(1), jnp.int32(0))
    assert set(grads) == {"model"}
    assert np.isfinite(metrics["loss"])
    shown = jax.jit(stage.evaluate)(
        params | {"model": random_denoiser(stage.model)}, batch, jax.random.key(2)
    )
    assert shown["loss"] != shown["loss_null"]
    assert {"loss_at_0.2", "loss_at_1.4"} <= shown.keys()


def test_the_frozen_networks_are_those_of_a_release(folder: Path) -> None:
    stage = dataclasses.replace(GENERATOR, networks=str(folder / "n2m"))
    frozen = stage.init(jax.random.key(0))["frozen"]
    text = release.load_network(folder / "n2m", "mulan")[0]["text"]["encoder"]
    np.testing.assert_array_equal(frozen["text"]["words"], text["words"])
    assert "decoder" not in frozen["autoencoder"]
    assert stage.hashes == {name: release.network_hash(folder / "n2m", name) for name in ("mulan", "vae")}
    with pytest.raises(UserError, match=r"stage\.networks is missing"):
        _ = GENERATOR.hashes
    other = dataclasses.replace(stage, autoencoder=dataclasses.replace(stage.autoencoder, latent_scale=2.0))
    with pytest.raises(
        UserError,
        match=r"has another autoencoder than stage\.autoencoder: latent_scale is 1\.0 there and 2\.0",
    ):
        other.init(jax.random.key(0))


def test_lower_rate_is_the_mean_of_neighbours() -> None:
    latents = jnp.arange(8.0).reshape(1, 8, 1)
    np.testing.assert_array_equal(lower_rate(latents, 4)[0, :, 0], [1.5, 5.5])


def test_captions_of_another_length_or_tokenizer_are_refused(folder: Path, tmp_path: Path) -> None:
    batch = next(Batches(GENERATOR))
    params = GENERATOR.init(jax.random.key(0))
    longer = {name: np.pad(batch[name], ((0, 0), (0, 2))) for name in ("text_ids", "text_mask")}
    with pytest.raises(UserError, match=r"data\.text_length is 8; model\.text\.length is 6"):
        GENERATOR.evaluate(params, batch | longer, jax.random.key(1))
    stage = dataclasses.replace(GENERATOR, networks=str(folder / "n2m"))
    stage.check_tokenizer("")
    other = tmp_path / "tokenizer.json"
    other.write_text("{}")
    with pytest.raises(UserError, match=r"data\.text_tokenizer is .* has the packaged one: leave it out"):
        stage.check_tokenizer(str(other))


def test_a_crop_of_another_length_is_refused() -> None:
    batch = next(Batches(GENERATOR))
    params = GENERATOR.init(jax.random.key(0))
    with pytest.raises(UserError, match=r"data\.crop_samples is 14400; 16 frames of the generator are 15360"):
        GENERATOR.evaluate(params, batch | {"audio": batch["audio"][:, :14_400]}, jax.random.key(1))


@pytest.mark.parametrize(
    ("stage", "changes", "says"),
    [
        (GENERATOR, {"part": "vocoder"}, "part is 'vocoder'"),
        (GENERATOR, {"ratio": 0}, "ratio is 0"),
        (GENERATOR, {"condition_dropout": 1.0}, r"condition_dropout is 1\.0"),
        (GENERATOR, {"part": "upsampler"}, r"model\.lower_ratio is 0; this upsampler needs 4"),
        (UPSAMPLER, {"part": "generator"}, r"model\.lower_ratio is 4; this generator needs 0"),
        (GENERATOR, {"part": "latent_generator"}, "writes latents of a diffusion codec"),
        (GENERATOR, {"autoencoder": diffusion_codec.TINY}, "writes latents of an autoencoder"),
        (GENERATOR, {"autoencoder": vae.TINY}, r"model\.latent_dim is 16; this generator needs 8"),
        (GENERATOR, {"autoencoder": dataclasses.replace(vae.TINY_CODES, latent_width=16)}, "has a quantiser"),
        (GENERATOR, {"text": dataclasses.replace(GENERATOR.text, width=64)}, r"model\.text\.width is 32"),
        (GENERATOR, model(chunks=4), r"model\.chunks is 4; this generator needs 1"),
        (GENERATOR, model(guidance_range=(1.0, 4.0)), r"model\.guidance_range is \(1"),
        (GENERATOR, model(prefix_conditioning=True), r"model\.prefix_conditioning is True"),
        (UPSAMPLER, model(UPSAMPLER, lower_dim=4), r"model\.lower_dim is 4; this upsampler needs 0"),
        (
            UPSAMPLER,
            model(UPSAMPLER, frames=66),
            r"model\.frames is 66; it must be a multiple of the ratio, 4",
        ),
    ],
)
def test_impossible_stages_are_refused(stage: TextDiffusionStage, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        dataclasses.replace(stage, **changes)
