"""MusicLM at `tiny` size with random weights: clips from prompts, whatever the batch; what it lacks is refused."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.musiclm import musiclm_networks
from helpers.swapped import assert_ground_truth_enters_each_stage
from helpers.tiny import PROMPTS, tiny_networks
from helpers.word_systems import assert_best_of_returns_the_closest_candidate

from melody_jax import load, release
from melody_jax.cli import run
from melody_jax.errors import InputWarning, UserError
from melody_jax.evaluation import stage_swap
from melody_jax.models import vae
from melody_jax.release import load_tokenizer
from melody_jax.sampling.request import Scene, make_requests
from melody_jax.systems import musiclm
from melody_jax.systems.audiolm import AudioLM
from melody_jax.systems.musiclm import MusicLM
from melody_jax.systems.token_writing import Writing

SETTINGS = {"seed": 3, "lm_guidance_scale": 1.0}
PLAIN = Writing(guided=False)


@pytest.fixture(scope="module")
def system() -> MusicLM:
    made = musiclm_networks()
    params, configs = ({name: part[i] for name, part in made.items()} for i in (0, 1))
    return MusicLM(params, configs, {}, load_tokenizer(".", configs["mulan"].text.vocab_size))


def test_clips_do_not_depend_on_their_batch(system: MusicLM) -> None:
    """Two windows and a half, with another prompt later."""
    assert system.window_seconds == 0.64
    story = (Scene(start=0.9, prompt="driving techno"),)
    together = system.generate(PROMPTS, seconds=1.4, story=story, **SETTINGS)
    assert {clip.shape for clip in together} == {(33_600,)}
    assert all(clip.dtype == np.float32 and np.abs(clip).max() <= 1 for clip in together)
    assert len({clip.tobytes() for clip in together}) == len(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        (alone,) = system.generate(prompt, seconds=1.4, story=story, **SETTINGS | {"seed": 3 + i})
        np.testing.assert_allclose(alone, together[i], atol=1e-4)


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_a_stream_is_the_clip(system: MusicLM, seconds: float) -> None:
    """Shorter than a window, and six windows, which come in parts."""
    stream = system.stream("piano", seconds=seconds, **SETTINGS)
    parts = list(stream)
    assert len(parts) == (1 if seconds < 1 else 3)
    (clip,) = system.generate("piano", seconds=seconds, **SETTINGS)
    np.testing.assert_array_equal(np.concatenate(parts), clip)
    endless = itertools.islice(system.stream("piano", **SETTINGS), 3)
    opening = np.concatenate(list(endless))[:12_000]
    np.testing.assert_allclose(opening[:11_000], np.concatenate(parts)[:11_000], atol=1e-4)


def test_each_model_has_its_published_temperature(system: MusicLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, the best token is taken, whatever the seed."""
    assert MusicLM.temperatures == (1.0, 0.95, 0.4)
    assert AudioLM.temperatures == (0.6, 0.8, 0.6)

    def draw(*temperatures: float) -> list[np.ndarray]:
        """The coarse and the fine codes of one prompt with two seeds."""
        monkeypatch.setattr(MusicLM, "temperatures", temperatures)
        requests = make_requests(["piano"] * 2, {"seconds": 0.6, "lm_guidance_scale": 1.0, "seed": [1, 2]})
        encoded = system.prompt_encoder.encode_requests(requests)
        rows = [(request, 0) for request in requests]
        return np.split(np.asarray(system.codes(rows, encoded, 1, PLAIN).codes), [2], axis=2)

    for temperatures, differs in [
        ((0, 0, 0), (False, False)),
        ((0, 0, 1), (False, True)),
        ((0, 1, 0), (True, True)),
    ]:
        codes = draw(*temperatures)
        assert tuple(bool((part[0] != part[1]).any()) for part in codes) == differs


def test_a_scene_begins_with_the_window_after_it(system: MusicLM) -> None:
    """The second window adds what follows 0.64 s."""
    encoder = system.prompt_encoder

    def codes(*scenes: Scene) -> np.ndarray:
        (request,) = make_requests("piano", {"seconds": 0.9, "story": scenes, **SETTINGS})
        encoded = encoder.encode_requests([request])
        return np.asarray(system.codes([(request, 0)], encoded, 2, PLAIN).codes)[0, :, :2]

    plain = codes()
    early = codes(Scene(start=0.6, prompt="driving techno"))
    np.testing.assert_array_equal(early[:16], plain[:16])
    assert (early[16:] != plain[16:]).any()
    np.testing.assert_array_equal(codes(Scene(start=0.7, prompt="driving techno")), plain)


def test_a_scene_that_no_window_follows_gives_a_warning(system: MusicLM) -> None:
    story = (Scene(start=0.7, prompt="driving techno"),)
    says = r"the scene at 0\.7 s has no effect: .* begin at 0 s, 0\.64 s and every 0\.32 s"
    with pytest.warns(InputWarning, match=says):
        system.generate("piano", seconds=0.9, story=story, **SETTINGS)
    with pytest.warns(InputWarning, match=says):
        system.stream("piano", seconds=0.9, story=story, **SETTINGS)
    system.stream("piano", story=story, **SETTINGS)  # endless


def test_networks_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    for name, (params, config) in musiclm_networks().items():
        needs = {
            "lm": {"tokenizer": "a" * 64},
            "coarse": {"tokenizer": "b" * 64},
            "fine": {"tokenizer": "c" * 64},
        }
        release.save_network(tmp_path / "mixed", name, params, config, needs.get(name, {}))
    says = "lm was trained with tokenizer aaaaaaaaaaaa, coarse with bbbbbbbbbbbb; take all files from one release"
    with pytest.raises(UserError, match=says):
        musiclm.load("mixed", folder=tmp_path)


def test_guidance_and_candidates_matter(system: MusicLM) -> None:
    """So does a negative prompt. A clip has as many samples as its length says, and its seed determines it."""
    short, again = system.generate(["piano", "piano"], seconds=0.3, seed=[5, 5])
    assert short.shape == (7_200,)
    np.testing.assert_array_equal(short, again)
    guided, steered, other = system.generate(
        ["piano"] * 3, seconds=0.5, seed=[5] * 3, negative_prompt=["", "drums", "a slow waltz"]
    )
    (plain,) = system.generate("piano", seconds=0.5, seed=5, lm_guidance_scale=1.0)
    clips = (guided, steered, other, plain)
    assert {clip.shape for clip in clips} == {(12_000,)}
    for one, two in itertools.combinations(clips, 2):
        assert np.abs(one - two).max() > 1e-4
    assert_best_of_returns_the_closest_candidate(system, guided, seconds=0.5, seed=5)


def test_codes_are_written_level_by_level(system: MusicLM) -> None:
    encoder = system.prompt_encoder
    (request,) = make_requests("piano", {"seconds": 1.0, **SETTINGS})
    encoded = encoder.encode_requests([request])
    codes = np.asarray(system.codes([(request, 0)], encoded, 2, PLAIN).codes)
    assert codes.shape == (1, 24, 3)
    assert 0 <= codes.min() <= codes.max() < 16
    first = np.asarray(system.codes([(request, 0)], encoded, 1, PLAIN).codes)
    np.testing.assert_array_equal(codes[:, :16, :2], first[:, :, :2])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 9}, "steps is 9: musiclm has no such setting"),
        ({"guidance_scale": 3.0}, "guidance_scale is 3.0: musiclm has no"),
        ({"source": np.zeros(48_000, np.float32)}, "musiclm has no such setting"),
        ({"bpm": 120.0}, "bpm is 120.0: musiclm has no"),
    ],
)
def test_what_it_lacks_is_refused_by_name(system: MusicLM, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        system.generate("piano", seconds=0.5, **settings)


def test_ground_truth_enters_each_stage(tmp_path: Path) -> None:
    networks = {"tokenizer": tiny_networks()["tokenizer"]} | musiclm_networks()
    for name, (params, config) in networks.items():
        release.save_network(tmp_path / "some", name, params, config, {})
    system = stage_swap.load_system("some", "musiclm", str(tmp_path))
    assert_ground_truth_enters_each_stage(system, ["vae", "fine", "coarse", "lm", "text"])


def test_a_release_is_loaded_and_checked(tmp_path: Path) -> None:
    made = musiclm_networks()
    folder = tmp_path / "some"
    for name, (params, config) in made.items():
        release.save_network(folder, name, params, config, {})
    clip = musiclm.load("some", folder=tmp_path).generate("piano", seconds=0.2)[0]
    assert clip.shape == (4_800,)
    with pytest.raises(
        UserError, match=r"some has no dpd but the networks of musiclm; load it with --system"
    ):
        load("some", folder=tmp_path)
    (folder / "fine.json").unlink()
    with pytest.raises(
        UserError, match=r"some has no fine, and musiclm needs .* train it as docs/systems.md says"
    ):
        musiclm.load("some", folder=tmp_path)


@pytest.mark.parametrize(
    ("network", "change", "says"),
    [
        ("vae", lambda config: vae.TINY, "vae has no quantiser; language models of codes need a codec"),
        (
            "fine",
            lambda config: dataclasses.replace(config, code_levels=5),
            "write 7 levels of 16 codes, the codec",
        ),
        (
            "fine",
            lambda config: dataclasses.replace(
                config, condition=dataclasses.replace(config.condition, levels=1)
            ),
            "fine follows 1 levels of codes, coarse writes 2",
        ),
        ("coarse", lambda config: dataclasses.replace(config, condition=None), "coarse has no condition"),
        (
            "coarse",
            lambda config: dataclasses.replace(config, prefix_levels=0),
            "prefix levels of coarse and mulan",
        ),
    ],
)
def test_networks_that_do_not_fit_are_refused(system: MusicLM, network: str, change: Any, says: str) -> None:
    configs = system.configs | {network: change(system.configs[network])}
    with pytest.raises(UserError, match=says):
        MusicLM(system.params, configs, {}, system.tokenizer)


def test_a_wav_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, (params, config) in musiclm_networks().items():
        release.save_network(tmp_path / "some", name, params, config, {})
    options = ["--system", "musiclm", "--model", "some", "--folder", str(tmp_path), "--seconds", "0.5"]
    out = tmp_path / "song.wav"
    run(["sample", "a calm piano", *options, "--out", str(out)])
    assert soundfile.info(out).frames == 12_000
    assert "0.5 s of music" in capsys.readouterr().out
    absent = tmp_path / "absent"
    for refused in (["a calm piano", "--steps", "3"], []):
        with pytest.raises(
            UserError, match=r"steps is 3: musiclm has no|there is no prompt; describe the music"
        ):
            run(["sample", *refused, *options, "--out", str(absent / "song.wav")])
        assert not absent.exists()
    with pytest.raises(
        UserError, match=r"networks of musiclm; load it with --system musiclm, in Python with"
    ):
        run(["sample", "a calm piano", *options[2:]])
    with pytest.raises(UserError, match="--distilled needs --system melody; musiclm does not have it"):
        run(["sample", "a calm piano", *options, "--distilled"])


def test_a_batch_job(tmp_path: Path) -> None:
    """Its clips are those of `generate`; what exists is not made again, and a bad line is refused before any work."""
    for name, (params, config) in musiclm_networks().items():
        release.save_network(tmp_path / "some", name, params, config, {})
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "a", "prompt": "piano"}\n{"id": "b", "prompt": "drums", "seed": 7}\n')
    job = ["sample", "--system", "musiclm", "--model", "some", "--folder", str(tmp_path), "--seconds", "0.5"]
    job += ["--prompts", str(prompts), "--out", str(tmp_path / "clips"), "--suffix", ".flac"]
    run(job)
    clip, _ = soundfile.read(tmp_path / "clips" / "b.flac", dtype="float32")
    (alone,) = musiclm.load("some", folder=tmp_path).generate("drums", seconds=0.5, seed=7)
    np.testing.assert_allclose(clip, alone, atol=2e-4)
    written = (tmp_path / "clips" / "a.flac").stat().st_mtime_ns
    prompts.write_text(prompts.read_text() + '{"id": "c", "prompt": "piano", "negative_prompt": " "}\n')
    run(job)
    assert (tmp_path / "clips" / "c.flac").exists()
    assert (tmp_path / "clips" / "a.flac").stat().st_mtime_ns == written
    prompts.write_text('{"prompt": "piano", "steps": 3}\n')
    with pytest.raises(UserError, match="line 1: steps is 3: musiclm has no such setting"):
        run(job)


def test_an_unknown_system_lists_the_others() -> None:
    with pytest.raises(UserError, match="system 'jukebox'; it must be one of melody, musiclm, audiolm"):
        load("mini", system="jukebox")
