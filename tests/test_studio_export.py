"""What leaves a project: requests as commands and prompt files, clips with tags, zips that make clips again."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.fake_system import RATE
from helpers.studio_project import RELEASE, add, noise

from melody_jax import cli, files
from melody_jax.errors import UserError
from melody_jax.options import parse_options
from melody_jax.sampling import notation
from melody_jax.sampling.cascade import Melody
from melody_jax.sampling.prompt_file import read_prompt_file
from melody_jax.sampling.request import Part, Request, Scene, make_requests
from melody_jax.studio.export import command_words, export_clip, export_zip
from melody_jax.studio.jobs import JobQueue
from melody_jax.studio.project import Project, UnknownTake, open_project
from melody_jax.studio.takes import Release, Take, kind_of, prompt_line, request_of, title_of
from melody_jax.systems import command
from melody_jax.systems.command import SampleConfig

PATIENCE = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "project"


@pytest.fixture
def project(folder: Path) -> Iterator[Project]:
    with open_project(folder) as opened:
        yield opened


REQUESTS: list[dict[str, Any]] = [
    {"prompt": "a calm solo piano piece", "seed": 7, "seconds": 20.5},
    {
        "prompt": "-loud \"quotes\" 'and' $HOME & | \\ ünï 音",
        "negative_prompt": "-quiet",
        "guidance_scale": -1.5,
    },
    {"prompt": [("piano", 1.0), ("rain", 0.3), ("drums", -0.5)], "temperature": 0.1 + 0.2},
    {"prompt": "dawn", "story": [(5.0, "noon"), (8, "dusk = night")], "bpm": -1.0},
    {"prompt": "piano", "key": "A minor", "metre": "3/4", "control_scale": 2.0, "best_of": 3},
    {"prompt": "jazz", "source": True, "regions": ((0.25, 0.5), (0.75, 0.9))},
    {"prompt": "jazz", "source": True, "strength": 0.4},
    {"prompt": "jazz", "source": True, "keep_tokens": True},
    {"prompt": "", "source": True, "seconds": 3.0},
    {"prompt": "hummed", "melody": True},
    {"prompt": [("piano", 1.0), (None, 0.25), ("rain", 0.3)]},
    {"prompt": [(None, 1.0)]},
    {"prompt": [("piano", 2.0), ("rain", 1.0)]},
    {"prompt": [("rain", 1.0), ("piano", 0.5), (None, 0.5)]},
    {"prompt": "dawn", "story": [(5.0, [("noon", 0.5), ("dusk", 1.0)])]},
    {"prompt": None, "seed": 3},
]
INEXPRESSIBLE = (13, 14)
"""Those that only a prompt file can describe."""


def make_request(project: Project, settings: dict[str, Any]) -> Request:
    sound = project.add_source(noise(1.5), RATE)

    def prompt(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return tuple(
            Part(audio=sound, weight=weight) if text is None else Part(text=text, weight=weight)
            for text, weight in value
        )

    values = settings | {"prompt": prompt(settings["prompt"])}
    values |= {name: sound for name in ("source", "melody") if name in settings}
    values["story"] = tuple(
        Scene(start=start, prompt=prompt(text)) for start, text in settings.get("story", ())
    )
    return Request(**values)


def normal(request: Request) -> dict[str, Any]:
    """A request as JSON in which a text and a blend of it alone are the same, and ids of files are their content."""

    def parts(value: Any) -> Any:
        return [{"text": value, "audio": None, "weight": 1.0}] if isinstance(value, str) and value else value

    values = notation.request_to_json(request)
    story = [scene | {"prompt": parts(scene["prompt"])} for scene in values["story"]]
    return values | {"prompt": parts(values["prompt"]), "story": story}


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_a_request_survives_json_prompt_file_and_command(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    request = make_request(project, REQUESTS[number])
    take = project.add_take(noise(), RATE, request, RELEASE, model_hash="")
    settings = json.loads(json.dumps(take.settings))
    assert normal(request_of(settings, project.sources_folder)) == normal(request)
    prompts = folder / "prompts.jsonl"
    prompts.write_text(json.dumps(prompt_line(take, "sources/")))
    (line,) = read_prompt_file(prompts, {})
    assert line.clip_id == take.id
    assert normal(line.request) == normal(request)
    words = command_words(take)
    assert (words is None) == (number in INEXPRESSIBLE)
    if words is None:
        return
    monkeypatch.chdir(folder)
    config = parse_options(SampleConfig(), words[2:], "melody sample", "prompt")
    prompt = None if REQUESTS[number]["prompt"] is None else command._prompt(config)
    (described,) = make_requests([prompt], command._settings(config))
    assert normal(described) == normal(request)


def test_kinds_and_titles(project: Project) -> None:
    kinds = [kind_of(make_request(project, REQUESTS[number])) for number in (0, 5, 6, 7, 8)]
    assert kinds == ["prompt", "mend", "variation", "restyle", "continuation"]
    titles = [title_of(make_request(project, REQUESTS[number])) for number in (2, 3, 8, 11, 15)]
    assert titles == [
        "piano + rain + drums",
        "dawn, then noon, then dusk = night",
        "continuation",
        "prompt",
        "prompt",
    ]
    assert len(title_of(Request(prompt="word " * 1000))) == 200


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_an_exported_clip_has_tags(project: Project, suffix: str) -> None:
    take = add(project, 'ünï <b>waltz</b>\nin "3/4"', 11)
    with soundfile.SoundFile(io.BytesIO(export_clip(project, take.id, suffix))) as sound:
        assert sound.title == take.title == 'ünï <b>waltz</b> in "3/4"'
        assert sound.comment.startswith("seed 11; prompt: ünï <b>waltz</b>")
        assert "melody_jax" in sound.software
        samples = sound.read(dtype="float32")
    if suffix != ".ogg":
        np.testing.assert_array_equal(samples, project.read(take.id))
    assert len(samples) == len(project.read(take.id))
    with pytest.raises(UserError, match="must end in one of"):
        export_clip(project, take.id, ".exe")


def test_a_zip_is_streamed_and_stays_inside(project: Project) -> None:
    takes = [add(project, f"../../{i}", i) for i in range(3)]
    gone = add(project)
    other = Release(name="other", system="musiclm")
    takes.append(project.add_take(noise(), RATE, Request(prompt="a"), other, model_hash=""))
    parts = export_zip(project)
    first = next(parts)
    assert len(first) < 100_000
    project.delete(gone.id)
    data = first + b"".join(parts)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert not any(name.startswith(("/", "..")) or "/../" in name for name in names)
        assert {f"clips/{take.file}" for take in takes} < set(names)
        manifests = [
            archive.read(name).decode().splitlines() for name in ("manifest.jsonl", "manifest-2.jsonl")
        ]
        assert [len(lines) for lines in manifests] == [1, 3]
        assert "--system musiclm" in archive.read("README.md").decode()
        assert archive.read("commands.sh").decode().count("melody sample") == 4
    with zipfile.ZipFile(io.BytesIO(b"".join(export_zip(project, [takes[1].id])))) as archive:
        assert [name for name in archive.namelist() if "clips" in name] == [f"clips/{takes[1].file}"]
    with pytest.raises(UnknownTake):
        export_zip(project, ["0" * 16])


@pytest.fixture(scope="module")
def editing(releases: Path) -> Melody:
    from melody_jax import load

    return load("tiny", folder=releases, networks=("mulan", "lm", "dpd", "vae", "tokenizer"))


def test_a_zip_makes_every_clip_again_to_the_bit(
    editing: Melody, releases: Path, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip, its continuation, a mended part, and a blend with a sound; the parent is deleted."""
    fast: dict[str, Any] = {"steps": 1, "guidance_scale": 1.0, "lm_guidance_scale": 1.0}
    with JobQueue(editing, Release(name="tiny"), project) as queue:

        def make(request: Request, parent: str | None = None) -> Take:
            status = queue.wait(queue.submit(request, client="page", parent=parent).id, PATIENCE)
            assert status.error is None
            return project.take(status.take_id or "")

        first = make(Request(prompt="slow sad cello", seed=5, seconds=1.5, **fast))
        source = project.take_as_source(first.id)
        make(Request(prompt="slow sad cello", source=source, seconds=2.5, seed=1, **fast), first.id)
        mended = make(
            Request(prompt="bossa nova", source=source, regions=((0.5, 0.8),), seed=2, **fast), first.id
        )
        blend = (Part(text="piano"), Part(audio=source, weight=0.5))
        make(Request(prompt=blend, seed=3, seconds=1.5, **fast))
    outside = slice(0, editing.sample_rate // 2)
    np.testing.assert_array_equal(project.read(mended.id)[outside], project.read(first.id)[outside])
    project.delete(first.id)
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(io.BytesIO(b"".join(export_zip(project)))) as archive:
        archive.extractall(unpacked)
    monkeypatch.chdir(unpacked)
    monkeypatch.setattr("melody_jax.runtime.enable_compile_cache", lambda: None)
    job = ["--prompts", "manifest.jsonl", "--out", "again", "--batch", "1", "--suffix", ".flac"]
    assert f"melody sample {' '.join(job)} --model tiny" in (unpacked / "README.md").read_text()
    cli.run(["sample", *job, "--model", "tiny", "--folder", str(releases)])
    for take in project.takes():
        words = command_words(take)
        assert words is not None
        cli.run([*words[1:], "--folder", str(releases), "--out", f"one/{take.file}"])
        clip = (unpacked / "clips" / take.file).read_bytes()
        assert files.file_hash(project.path(take.id)) == take.sha256
        assert clip == (unpacked / "again" / take.file).read_bytes()
        assert clip == (unpacked / "one" / take.file).read_bytes()
