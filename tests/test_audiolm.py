"""AudioLM at `tiny` size with random weights: clips from nothing, and recordings that are continued."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.musiclm import audiolm_networks

from melody_jax import load, release
from melody_jax.cli import run
from melody_jax.errors import UserError
from melody_jax.systems.audiolm import AudioLM

RATE = 24_000


@pytest.fixture(scope="module")
def system() -> AudioLM:
    params, configs = ({name: part[i] for name, part in audiolm_networks().items()} for i in (0, 1))
    return AudioLM(params, configs, {})


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    """4.01 s: no whole number of semantic tokens."""
    seconds = np.arange(96_240) / RATE
    return (0.3 * np.sin(2 * np.pi * 220 * seconds * (1 + seconds / 10))).astype(np.float32)


def test_a_recording_is_continued_and_stays_as_it_is(system: AudioLM, recording: np.ndarray) -> None:
    (clip,) = system.generate(source=recording, seconds=14.0, seed=2)
    assert clip.shape == (14 * RATE,)
    np.testing.assert_array_equal(clip[: len(recording)], recording)
    new = clip[len(recording) :]
    assert np.isfinite(clip).all()
    assert np.abs(new).max() <= 1
    assert new[: RATE // 2].std() > 1e-3 < new[-RATE // 2 :].std()
    assert clip[-1] == 0


def test_the_recording_is_the_context(system: AudioLM, recording: np.ndarray) -> None:
    """Other tokens before, other tokens after, from the same seed; what is far from the end has no effect."""
    settings = {"seconds": 4.6, "seed": 2}
    clips = [
        system.generate(source=sound, **settings)[0][len(recording) :]
        for sound in (recording, recording[::-1].copy(), np.r_[recording[:9_600] * 0.9, recording[9_600:]])
    ]
    assert (clips[0] != clips[1]).any()
    np.testing.assert_allclose(clips[0], clips[2], atol=0.02)


def test_clips_do_not_depend_on_their_batch(system: AudioLM) -> None:
    together = system.generate([None] * 3, seconds=0.9, seed=4)
    assert len({clip.tobytes() for clip in together}) == 3
    (alone,) = system.generate(seconds=0.9, seed=5)
    np.testing.assert_allclose(alone, together[1], atol=1e-4)


def test_an_endless_stream(system: AudioLM) -> None:
    """Its beginning is that of a clip, whose length does not matter until its end."""
    parts = list(itertools.islice(system.stream(seed=4), 4))
    opening = np.concatenate(parts)[: round(0.8 * RATE)]
    (clip,) = system.generate(seconds=2.0, seed=4)
    np.testing.assert_allclose(opening, clip[: len(opening)], atol=1e-4)
    with pytest.raises(UserError, match="a source cannot be streamed"):
        system.stream(source=np.zeros(2 * RATE, np.float32))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prompts": "piano"}, "prompt is 'piano': audiolm has no such setting; leave it out"),
        ({"prompts": 4}, "prompts is 4; it must be a text, or a list of them"),
        ({"best_of": 2}, "best_of is 2: audiolm has no such setting"),
        ({"lm_guidance_scale": 3.0}, "lm_guidance_scale is 3.0: audiolm has no such setting"),
        (
            {"seconds": 2.0, "source": np.zeros(72_000, np.float32)},
            r"it must exceed the 3.00 s of the source",
        ),
        ({"seconds": 2.0, "source": np.zeros(7, np.float32)}, "at least a second"),
        (
            {"seconds": 9.0, "source": np.zeros(601 * RATE, np.float32)},
            "the source lasts 601 s; it must be at most",
        ),
    ],
)
def test_what_it_lacks_is_refused_by_name(system: AudioLM, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        system.generate(**settings)


def test_a_language_model_of_prompts_is_refused(system: AudioLM) -> None:
    configs = system.configs | {"lm": dataclasses.replace(system.configs["lm"], prefix_levels=12)}
    with pytest.raises(UserError, match="lm follows 12 prefix tokens; AudioLM has none"):
        AudioLM(system.params, configs, {})


def test_from_the_command_line(tmp_path: Path, recording: np.ndarray) -> None:
    for name, (params, config) in audiolm_networks().items():
        release.save_network(tmp_path / "some", name, params, config, {})
    options = ["--model", "some", "--folder", str(tmp_path)]
    out = tmp_path / "song.wav"
    run(["sample", "--system", "audiolm", *options, "--seconds", "0.5", "--out", str(out)])
    assert soundfile.info(out).frames == 12_000
    soundfile.write(tmp_path / "mine.wav", recording, RATE, "FLOAT")
    source = ["--source", str(tmp_path / "mine.wav"), "--seconds", "5"]
    run(["sample", "--system", "audiolm", *options, *source, "--out", str(out)])
    samples, _ = soundfile.read(out, dtype="float32")
    np.testing.assert_allclose(samples[: len(recording)], recording, atol=2e-4)  # 16 bits
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "a", "prompt": null}\n{"id": "b", "source": "mine.wav", "seconds": 5}\n')
    clips = tmp_path / "clips"
    job = ["sample", "--system", "audiolm", *options, "--seconds", "0.5", "--prompts", str(prompts)]
    run([*job, "--out", str(clips)])
    assert [soundfile.info(clips / f"{name}.wav").frames for name in "ab"] == [12_000, 120_000]
    with pytest.raises(UserError, match="the networks of audiolm; load it with --system audiolm"):
        load("some", folder=tmp_path)
