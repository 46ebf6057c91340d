"""The sampler end to end at tiny size: shapes, determinism, batches, mismatched releases, bad input."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from helpers.tiny import PROMPTS, tiny_networks

from melody_jax import audio_decoding, load, release
from melody_jax.audio_format import DEFAULT_FORMAT
from melody_jax.errors import InputWarning, UserError
from melody_jax.models import conditioning, functional
from melody_jax.sampling import plan, windows
from melody_jax.sampling.item_controls import item_keys, make_controls
from melody_jax.sampling.prompts import PromptEncoder, read_audio
from melody_jax.sampling.request import Part, Request, Scene, make_requests


def test_a_part_of_the_cascade_can_be_loaded(releases: Path) -> None:
    part = load("tiny", folder=releases, networks=("vae",))
    assert set(part.params) == {"vae"}
    with pytest.raises(UserError, match="mulan was not loaded"):
        part.generate("piano")


def test_shape_range_and_rate(melody) -> None:
    waves = melody.generate(PROMPTS[:2], seconds=1.5, steps=2)
    assert [wave.shape for wave in waves] == [(36_000,), (36_000,)]
    assert waves[0].dtype == np.float32
    assert np.isfinite(waves).all()
    assert np.abs(waves).max() <= 1.0
    assert not np.array_equal(waves[0], waves[1])


def test_longer_than_a_window_is_continued(melody) -> None:
    assert melody.window_seconds == 3.2
    short, long = (melody.generate(PROMPTS[:2], seconds=seconds, steps=2) for seconds in (3.2, 4.5))
    assert [wave.shape for wave in long] == [(108_000,), (108_000,)]
    assert np.isfinite(long).all()
    begin = slice(0, 60_000)  # the phases differ near the end of the short clip
    for short_clip, long_clip in zip(short, long, strict=True):
        assert np.corrcoef(short_clip[begin], long_clip[begin])[0, 1] > 0.99
    repeated = melody.generate(PROMPTS[1], seconds=4.5, steps=2, seed=1)
    np.testing.assert_allclose(repeated[0], long[1], atol=1e-4)


def test_the_seed_determines_the_bits(melody) -> None:
    first, same_seed, next_seed = (
        melody.generate(PROMPTS[0], seconds=1, steps=2, seed=seed) for seed in (5, 5, 6)
    )
    assert np.array_equal(first, same_seed)
    assert not np.array_equal(first, next_seed)


def test_batch_of_four_equals_four_of_one(melody) -> None:
    settings = {"seed": 7, "steps": 3, "guidance_scale": [2.5, 2.0, 0.5, 4.0]}
    (batch,) = melody.plan(make_requests(PROMPTS, settings))
    config = batch.config
    encoded = melody.prompt_encoder.encode_requests(batch.requests)
    controls = melody.controls_at(batch, encoded)([0.0] * 4)
    tokens = jax.random.randint(jax.random.key(1), (4, config.tokens), 0, config.dpd.semantic_tokens)

    def sample_items(items: slice) -> tuple[np.ndarray, np.ndarray]:
        item_controls = jax.tree.map(lambda rows: rows[items], controls)
        keys = item_keys(item_controls)
        latents = windows.tokens_to_latents(melody.params["dpd"], config, item_controls, tokens[items], keys)
        wave = windows.latents_to_wave(melody.params["vae"], melody.configs["vae"], latents)
        return np.asarray(windows.initial_noise(keys, 16, 8)), np.asarray(wave)

    noise, waves = sample_items(slice(0, 4))
    for i in range(4):
        item_noise, wave = sample_items(slice(i, i + 1))
        assert np.array_equal(noise[i], item_noise[0])
        np.testing.assert_allclose(waves[i], wave[0], atol=1e-4)


def test_a_list_of_seeds_gives_one_per_prompt(melody) -> None:
    pair = melody.generate(PROMPTS[:2], seconds=1, steps=2, seed=[9, 4])
    single = melody.generate(PROMPTS[1], seconds=1, steps=2, seed=4)
    np.testing.assert_allclose(pair[1], single[0], atol=1e-4)


def test_items_do_not_depend_on_the_settings_of_others(melody) -> None:
    """Items that share a program share a batch; the clips are in the order of the prompts."""
    settings = {"seconds": [1, 3.5, 1], "steps": 2, "temperature": [1.0, 0.5, 1.1], "seed": [4, 5, 6]}
    clips = melody.generate(PROMPTS[:3], **settings)
    assert [len(wave) for wave in clips] == [24_000, 84_000, 24_000]
    third = {name: value[2] for name, value in settings.items() if isinstance(value, list)}
    np.testing.assert_allclose(clips[2], melody.generate(PROMPTS[2], steps=2, **third)[0], atol=1e-4)


def test_best_of_returns_the_closest_candidate(melody) -> None:
    (best,) = melody.generate(PROMPTS[0], seconds=1, steps=2, seed=3, best_of=3)
    request = Request(prompt=PROMPTS[0], seconds=1, steps=2, seed=3, best_of=3)
    (batch,) = melody.plan([request])
    latents = next(melody.latents(batch, melody.prompt_encoder.encode_requests([request])))
    waves = np.asarray(windows.latents_to_wave(melody.params["vae"], melody.configs["vae"], latents))[
        :, :24_000
    ]
    encoder = melody.prompt_encoder
    encoded = encoder.encode_requests([request])[request]
    scores = [encoder.similarity(encoded, wave) for wave in waves]
    assert len(set(scores)) == 3
    unfaded = slice(120, -120)
    np.testing.assert_allclose(best[unfaded], waves[np.argmax(scores)][unfaded], atol=1e-4)


def test_a_prompt_is_encoded_once(melody, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = []
    encode = PromptEncoder.encode
    monkeypatch.setattr(
        PromptEncoder, "encode", lambda self, prompt: (prompts.append(prompt), encode(self, prompt))[1]
    )
    settings = {"seconds": [1, 1, 4], "steps": 1, "best_of": 2, "negative_prompt": "drums"}
    melody.generate([PROMPTS[0], PROMPTS[1], PROMPTS[0]], **settings)
    assert sorted(prompts) == sorted([PROMPTS[0], PROMPTS[1], "drums"])


def test_blends_and_sounds_as_prompts(melody) -> None:
    encoder, sound = melody.prompt_encoder, np.random.default_rng(0).normal(0, 0.1, 30_000).astype(np.float32)
    texts = [encoder.target(text) for text in PROMPTS[:2]]
    half = encoder.target([Part(text=PROMPTS[0]), Part(text=PROMPTS[1])])
    np.testing.assert_allclose(half @ texts[0], half @ texts[1], atol=1e-5)
    np.testing.assert_allclose(encoder.target([Part(text=PROMPTS[0], weight=0.1)]), texts[0], atol=1e-6)
    encoded = encoder.encode([Part(audio=sound)])
    np.testing.assert_allclose(np.linalg.norm(encoded.point), 1, atol=1e-5)
    assert encoded.prefix_tokens.shape == (melody.configs["mulan"].levels,)


def test_a_story_changes_the_prompt_at_its_times(melody) -> None:
    story = (Scene(start=3.9, prompt=PROMPTS[1]),)
    (batch,) = melody.plan([Request(prompt=PROMPTS[0], story=story, seconds=6)])
    controls_at = melody.controls_at(batch, melody.prompt_encoder.encode_requests(batch.requests))
    begin, later = (melody.prompt_encoder.encode(prompt).prefix_tokens for prompt in PROMPTS[:2])
    assert np.any(begin != later)
    for seconds, expected in ((0.0, begin), (3.2, begin), (4.0, later), (9.6, later)):
        np.testing.assert_array_equal(controls_at([seconds]).prefix_tokens[0], expected)


def test_a_scene_after_the_end_is_refused(melody) -> None:
    story = (Scene(start=20, prompt="techno"),)
    with pytest.raises(UserError, match="a scene of the story begins at 20 s; the clip ends at 10 s"):
        melody.generate("piano", story=story)
    with pytest.raises(UserError, match="the clip ends at 20 s"):
        melody.stream("piano", story=story, seconds=20)
    assert next(melody.stream("piano", story=story, steps=1)).size  # endless


def test_a_scene_that_no_chunk_follows_gives_a_warning(melody) -> None:
    """Windows of 3.2 s and chunks of 0.8 s."""
    says = r"the scene at 1 s has no effect: .* chunks begin at 0 s, 3\.2 s and every 0\.8 s from there"
    with pytest.warns(InputWarning, match=says):
        melody.generate("piano", story=(Scene(start=1, prompt="drums"),), seconds=1.5, steps=1)
    cases = {(3.2, 4.8): [], (4.9,): [4.9], (3.9, 4.0): [3.9], (1.0, 3.0): [1.0], (4.1, 4.2): [4.1]}
    for starts, unused in cases.items():
        story = tuple(Scene(start=start, prompt="drums") for start in starts)
        messages = melody.unused_scenes(Request(prompt="piano", story=story, seconds=5.6))
        assert [float(message.split()[3]) for message in messages] == unused, starts


def test_guidance_of_one_is_no_guidance(melody) -> None:
    plain = melody.generate(PROMPTS[0], seconds=1, steps=2, guidance_scale=1.0)
    nearly = melody.generate(PROMPTS[0], seconds=1, steps=2, guidance_scale=1.0 + 1e-6)
    np.testing.assert_allclose(plain, nearly, atol=1e-3)


def test_a_distilled_diffusion_takes_the_guidance_scale(releases: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(releases / "tiny", tmp_path / "copy")
    config = dataclasses.replace(
        load("copy", folder=tmp_path, networks=("dpd",)).configs["dpd"], guidance_range=(1.0, 4.0)
    )
    added = {
        "guidance": functional.init(
            conditioning.GuidanceEmbedding, config.width, config.dtype, key=jax.random.key(0)
        )
    }
    added["guidance"]["out"]["kernel"] = jax.random.normal(jax.random.key(1), (64, config.width))
    release.save_network(copy, "dpd_distilled", added, config, {"dpd": release.network_hash(copy, "dpd")})
    melody = load("copy", folder=tmp_path, distilled=True)
    settings = {"seconds": 1, "steps": 2, "solver": "pingpong", "seed": [3, 3], "guidance_scale": [1.0, 3.0]}
    (batch,) = melody.plan(make_requests([PROMPTS[0]] * 2, settings))  # one program for all scales
    assert not batch.config.guided
    first, second = melody.run(batch.requests)
    assert np.abs(first - second).max() > 1e-3
    with pytest.raises(UserError, match=r"guidance_scale is 5\.0; the distilled diffusion supports 1 to 4"):
        melody.generate(PROMPTS[0], guidance_scale=5.0)
    with pytest.raises(
        UserError, match=r"guidance_rescale is 0\.0; it is no input of the distilled diffusion"
    ):
        melody.generate(PROMPTS[0], guidance_rescale=0.0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"prompts": "  "}, "empty"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": "very " * 500}, "500 word pieces"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": -1}, "seconds is -1"),
        ({"seconds": 1e9}, "seconds is 1000000000.0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 10**9}, "steps is 1000000000"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"seed": -2}, "seed is -2"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"prompts": None}, "prompts is None; it must be a text, or a list of them"),
        ({"prompts": 5}, "prompts is 5"),
        ({"prompts": [None]}, "there is no prompt; describe the music"),
        ({"prompts": "a \ud83d"}, "not valid Unicode"),
        ({"seconds": 1e-5}, "seconds is 1e-05; it must be at least one sample"),
        ({"seconds": (1, 2)}, "2 values of seconds for 1 prompts"),
        ({"regions": ((1, 1.00001),), "source": np.zeros(48_000, np.float32)}, "at least one sample long"),
        ({"regions": 5, "source": np.zeros(48_000, np.float32)}, "regions is 5"),
        ({"story": ("drums",)}, "must be a sequence of Scene"),
        ({"source": 5}, "source is 5; it must be a sound file, or samples"),
        ({"seed": [1, 2]}, "2 values of seed for 1 prompts"),
        ({"secnds": 3}, "'secnds'; is 'seconds' meant"),
        ({"solver": "euler"}, "solver is euler; it must be one of ddim"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"best_of": 65}, "best_of is 65"),
        ({"negative_prompt": "drums", "lm_guidance_scale": 1.0}, "needs guidance"),
        ({"control_scale": 2.0}, "control_scale is 2.0, but there is no key or metre"),
        ({"prompts": [(Part(audio=np.zeros(100, np.float32)),)]}, "at least a second"),
        ({"prompts": [("piano",)]}, "sequence of Part"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"top_k": 0}, "top_k is 0"),
        ({"schedule": "cubic"}, "cubic"),
    ],
)
def test_bad_arguments_are_named(melody, arguments: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        melody.generate(**{"prompts": PROMPTS[0], "seconds": 1, **arguments})


def test_seeds_of_64_bits(melody) -> None:
    """Those below 2**32 are folded as they are; the upper half of others changes the key."""
    seeds = (0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**64 - 1)
    requests = [Request(prompt="a", seed=seed) for seed in seeds]
    controls = make_controls(np.zeros((len(seeds), 4), np.int32), requests)
    keys = dict(zip(seeds, jax.random.key_data(item_keys(controls)), strict=True))
    assert len({tuple(np.asarray(data).ravel()) for data in keys.values()}) == len(keys)
    root = jax.random.key(0, impl="threefry2x32")
    for seed in (0, 1, 2**31, 2**32 - 1):
        expected = jax.random.fold_in(jax.random.fold_in(root, np.uint32(seed)), 0)
        np.testing.assert_array_equal(jax.random.key_data(expected), keys[seed])


def test_a_drawn_seed_is_printed_and_makes_the_clip_again(melody, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = melody.generate(PROMPTS[0], seconds=1, steps=1, seed=None)[0]
    word, seed = capsys.readouterr().err.split()
    assert word == "seed"
    assert np.array_equal(drawn, melody.generate(PROMPTS[0], seconds=1, steps=1, seed=int(seed))[0])
    first, second = make_requests(PROMPTS[:2], {"seed": -1})
    assert second.seed == first.seed + 1
    assert capsys.readouterr().err == f"seed {first.seed}\n"
    assert [request.seed for request in make_requests(PROMPTS[:2], {"seed": (3, 2**40)})] == [3, 2**40]


def test_arrays_and_tuples_give_one_value_per_prompt() -> None:
    settings = {"seconds": (1, 2), "seed": jnp.array([5, 6]), "temperature": np.float32(0.5)}
    first, second = make_requests(PROMPTS[:2], settings | {"steps": jnp.array(3)})
    assert (first.seconds, second.seconds, first.seed, second.seed) == (1, 2, 5, 6)
    assert first.steps == second.steps == 3
    assert first.temperature == 0.5
    assert make_requests(["a"], {"source": np.zeros(48_000), "regions": ((0, 1),)})[0].regions == ((0, 1),)


def test_sounds_may_be_arrays_of_jax(melody) -> None:
    sound = np.sin(np.arange(48_000) / 20).astype(np.float32)
    points = [melody.prompt_encoder.target((Part(audio=array),)) for array in (sound, jnp.asarray(sound))]
    np.testing.assert_array_equal(*points)


def test_a_request_given_twice_gives_two_arrays(melody) -> None:
    request = Request(prompt="piano", seconds=1, steps=1)
    first, second = melody.run([request, request])
    np.testing.assert_array_equal(first, second)
    assert not np.shares_memory(first, second)


def test_64_bits_change_nothing(melody, releases: Path) -> None:
    settings = {"seconds": 1, "steps": 1, "seed": 3}
    expected = melody.generate("piano", **settings)[0]
    with jax.enable_x64(True):
        loaded = load("tiny", folder=releases)
        clip = loaded.generate("piano", **settings)[0]
        streamed = np.concatenate(list(loaded.stream("piano", **settings)))
    np.testing.assert_array_equal(clip, expected)
    np.testing.assert_allclose(streamed, expected, atol=1e-4)


def test_unknown_words_are_named(melody) -> None:
    settings = {"seconds": 0.5, "steps": 1}
    with pytest.warns(
        InputWarning, match="'悲しいチェロ' has no word of the model's vocabulary .*'悲', 'しいチェロ'"
    ):
        melody.generate("悲しいチェロ", **settings)
    with pytest.warns(InputWarning, match="'slow 悲 cello' has words that are not .* vocabulary: '悲'"):
        next(melody.stream("slow 悲 cello", **settings))
    with pytest.warns(InputWarning, match="has no word"):
        melody.generate("A" * 300, **settings)
    with pytest.warns(
        InputWarning, match="prompt .* has no word of the model's vocabulary and says nothing to it$"
    ):
        melody.generate("\u200b", **settings)


def test_more_samples_than_memory_are_refused(melody, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "available_memory", lambda: 10**9)
    with pytest.raises(UserError, match=r"1024 clips .* 58,982,400,000 bytes .* 1,000,000,000 are free"):
        melody.generate(["piano"] * 1024, seconds=600)


def test_bad_stories_and_parts_are_named() -> None:
    with pytest.raises(UserError, match="a source of int16; samples must be floats"):
        read_audio(np.zeros(48_000, np.int16), "a source", DEFAULT_FORMAT)
    with pytest.raises(UserError, match=r"samples of up to 20000; they must be floats in \[-1, 1\]"):
        read_audio(np.full(48_000, 20_000.0), "a source", DEFAULT_FORMAT)
    with pytest.raises(UserError, match="must rise"):
        Request(prompt="piano", story=(Scene(start=5, prompt="drums"), Scene(start=2, prompt="flute")))
    with pytest.raises(UserError, match="one of the two"):
        Part(text="piano", audio="piano.wav")
    with pytest.raises(UserError, match="weight is 11"):
        Part(text="piano", weight=11)


@pytest.mark.parametrize("role", ["a source", "an audio prompt", "melody"])
def test_a_sound_of_hours_is_not_decoded(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(601_000), 1_000)
    monkeypatch.setattr(audio_decoding, "read_blocks", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match=rf"{role} of .*long\.flac lasts 601\.0 s; it must be at most 600 s"):
        read_audio(path, role, DEFAULT_FORMAT)


def test_an_unknown_release_lists_the_others(releases: Path) -> None:
    with pytest.raises(UserError, match=r"'huge'.*tiny"):
        load("huge", folder=releases)


def test_networks_of_two_trainings_are_refused(releases: Path, tmp_path: Path) -> None:
    for name, (params, config) in tiny_networks().items():
        hashes = {"vae": "0" * 64} if name == "dpd" else {}
        release.save_network(tmp_path / "mixed", name, params, config, hashes)
    with pytest.raises(UserError, match="dpd was trained with vae 000000000000"):
        load("mixed", folder=tmp_path)


def test_a_language_model_serves_any_autoencoder(tmp_path: Path) -> None:
    """It has nothing from the autoencoder that its features were made with."""
    for name, (params, config) in tiny_networks().items():
        hashes = {"vae": "0" * 64} if name == "lm" else {}
        release.save_network(tmp_path / "new", name, params, config, hashes)
    assert load("new", folder=tmp_path).hashes["lm"]
