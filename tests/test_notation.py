"""Regions, stories, blends: the notation of the command line and of prompt files; settings that everything shares."""

import dataclasses
from pathlib import Path

import pytest

from melody_jax.errors import UserError
from melody_jax.sampling import notation
from melody_jax.sampling.export_sampler import SamplerExportConfig
from melody_jax.sampling.request import Request, Scene
from melody_jax.sampling.settings import ClipSettings, SamplingSettings
from melody_jax.systems.command import SampleConfig

FOLDER = Path("songs")


def test_text_and_json_mean_the_same() -> None:
    assert notation.parse_region("3-5.5") == notation.parse_region([3, 5.5]) == (3, 5.5)
    assert notation.parse_regions(["3-5", [7, 8]]) == ((3, 5), (7, 8))
    for value in ("20=fast techno = loud", {"at": 20, "prompt": "fast techno = loud"}):
        scene = notation.parse_scene(value)
        assert (scene.start, scene.prompt) == (20, "fast techno = loud")
    for value in ("a=b=0.5", {"text": "a=b", "weight": 0.5}):
        part = notation.parse_part(value)
        assert (part.text, part.audio, part.weight) == ("a=b", None, 0.5)


def test_a_blend_of_a_command_line() -> None:
    assert notation.blend("piano", (), None, 0.5) == "piano"
    text, sound, other = notation.blend("piano", ("rain=-0.3",), Path("a.wav"), 0.5)
    assert [text.weight, sound.weight, other.weight] == [1, 0.5, -0.3]
    (sound,) = notation.blend(" ", (), Path("a.wav"), 0.5)
    assert sound.audio == Path("a.wav")


def test_a_request_is_written_as_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "rain.wav").write_bytes(b"RIFF")
    story = notation.parse_story([{"at": 3, "prompt": [{"audio": "rain.wav", "weight": 2}]}], tmp_path)
    (scene,) = notation.request_to_json(Request(prompt="piano", story=story))["story"]
    assert scene["at"] == 3
    assert scene["prompt"][0]["audio"].keys() == {"file", "sha256"}
    assert scene["prompt"][0]["weight"] == 2


@pytest.mark.parametrize(
    ("parse", "value", "message"),
    [
        (notation.parse_region, "3", "region '3': it must be BEGIN-END"),
        (notation.parse_region, "a-b", "region 'a-b'"),
        (notation.parse_regions, [3, 5], r"regions are \[3, 5\]"),
        (notation.parse_scene, "techno", "story 'techno': it must be SECONDS=PROMPT"),
        (notation.parse_scene, "700=techno", "start is 700"),
        (notation.parse_part, "cello", "blend 'cello': it must be PROMPT=WEIGHT"),
        (notation.parse_part, "=1", "text or audio"),
    ],
)
def test_bad_notation_is_named(parse, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(value)


def test_every_sampler_has_the_same_defaults() -> None:
    for config in (Request(prompt="piano"), SampleConfig(), SamplerExportConfig()):
        for field in dataclasses.fields(SamplingSettings):
            assert getattr(config, field.name) == field.default
    for field in dataclasses.fields(ClipSettings):
        assert getattr(SampleConfig(), field.name) == getattr(Request(prompt="piano"), field.name)


def test_requests_with_equal_settings_differ() -> None:
    first, second = (Request(prompt=prompt, story=(Scene(start=1, prompt="b"),)) for prompt in "ab")
    assert first != second
    assert len({first, second}) == 2
