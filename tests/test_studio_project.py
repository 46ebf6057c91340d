"""The studio's project folder: takes that survive a killed process, sources, pages, exports that make clips again."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.fake_system import RATE

from melody_jax import audio, cli, files
from melody_jax.errors import InputWarning, UserError
from melody_jax.options import parse_options
from melody_jax.sampling import notation
from melody_jax.sampling.cascade import Melody
from melody_jax.sampling.prompt_file import read_prompt_file
from melody_jax.sampling.request import Part, Request, Scene, make_requests
from melody_jax.studio import project as projects
from melody_jax.studio.export import command_words, export_clip, export_zip
from melody_jax.studio.jobs import JobQueue
from melody_jax.studio.project import MAX_PAGE, Project, UnknownTake, open_project
from melody_jax.studio.takes import Release, Take, kind_of, prompt_line, request_of, title_of
from melody_jax.systems import command
from melody_jax.systems.command import SampleConfig

ROOT = Path(__file__).parents[1]
RELEASE = Release(name="mini")
PATIENCE = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "project"


@pytest.fixture
def project(folder: Path) -> Iterator[Project]:
    with open_project(folder) as opened:
        yield opened


def noise(seconds: float = 0.5, seed: int = 0, channels: int = 1) -> np.ndarray:
    shape = (round(seconds * RATE), channels)[: channels if channels > 1 else 1]
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


def add(project: Project, prompt: Any = "bossa nova", seed: int = 0, **settings: Any) -> Take:
    request = Request(prompt=prompt, seed=seed, **settings)
    return project.add_take(noise(seed=seed), RATE, request, RELEASE, model_hash="0" * 16)


def test_a_take_is_what_was_made(project: Project, folder: Path) -> None:
    clip = noise()
    request = Request(prompt="slow sad cello", seed=2**64 - 1, seconds=0.5)
    take = project.add_take(
        clip,
        RATE,
        request,
        Release(name="mini", distilled=True),
        model_hash="0" * 16,
        similarity=0.5,
        seconds_taken=1.23456,
    )
    assert (take.kind, take.title, take.parent) == ("prompt", "slow sad cello", None)
    assert (take.seconds, take.sample_rate, take.channels, take.seconds_taken) == (0.5, RATE, 1, 1.235)
    audio.write(folder / "again.flac", clip, RATE)
    assert (folder / "again.flac").read_bytes() == project.path(take.id).read_bytes()
    assert take.sha256 == files.file_hash(folder / "again.flac")
    np.testing.assert_allclose(project.read(take.id), clip, atol=1 / 65536)
    assert json.loads((folder / "takes" / f"{take.id}.json").read_text()) == dataclasses.asdict(take)
    again = project.request(take.id, steps=9)
    assert (again.prompt, again.seed, again.steps) == ("slow sad cello", 2**64 - 1, 9)


@pytest.mark.parametrize("rate", [44_100, 96_001])
def test_a_rate_that_flac_cannot_hold_is_a_wav(project: Project, rate: int) -> None:
    take = project.add_take(noise(channels=2), rate, Request(prompt="a"), RELEASE, model_hash="")
    assert take.file.endswith(".flac" if rate == 44_100 else ".wav")
    assert project.read(take.id).shape == (RATE // 2, 2)
    assert soundfile.info(project.path(take.id)).samplerate == take.sample_rate == rate


def test_history_survives_a_restart(folder: Path) -> None:
    with open_project(folder) as project:
        takes = [add(project, f"take {i}", i) for i in range(5)]
        project.set_favourite(takes[1].id, True)
        project.rename(takes[2].id, "  a new\nname ")
        project.rename(takes[3].id, " ")
        project.delete(takes[4].id)
        before = project.takes()
    assert [take.title for take in before] == ["take 0", "take 1", "a new name", "take 3"]
    with open_project(folder) as project:
        assert project.takes() == before
        assert len(project) == 4
        assert [take.id for take in project.page(favourites=True)] == [takes[1].id]
        with pytest.raises(UnknownTake):
            project.path(takes[4].id)
    assert not list(folder.rglob(f"{takes[4].id}*"))


def test_pages_are_newest_first_and_bounded(project: Project) -> None:
    takes = [add(project, f"take {i}", i) for i in range(5)]
    first = project.page(2)
    second = project.page(2, before=first[-1].created)
    project.delete(second[-1].id)
    third = project.page(2, before=second[-1].created)
    assert [take.id for page in (first, second, third) for take in page] == [take.id for take in takes[::-1]]
    for limit in (0, MAX_PAGE + 1):
        with pytest.raises(UserError, match=f"limit is {limit}; it must be from 1 to 100"):
            project.page(limit)


def test_takes_of_one_moment_keep_their_order(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projects.time, "time", lambda: 1e9)
    takes = [add(project, seed=i) for i in range(3)]
    assert [take.id for take in project.page()] == [take.id for take in takes[::-1]]


def test_leftovers_are_removed_and_foreign_files_stay(folder: Path) -> None:
    with open_project(folder) as project:
        take = add(project)
        unused = project.add_source(noise(1), RATE)
        used = project.take_as_source(take.id)
        add(project, source=used, seconds=2)
    leftovers = [
        folder / "takes" / ".0123456789abcdef.flac.abcd.part",
        folder / "takes" / "0123456789abcdef.flac",
        folder / "sources" / ".x.part",
        folder / "uploads" / "tmp123" / "sound",
    ]
    foreign = [folder / "takes" / "mine.flac", folder / "sources" / "notes.txt", folder / "song.flac"]
    for path in [*leftovers, *foreign]:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    with open_project(folder) as project:
        assert len(project) == 2
        assert not any(path.exists() for path in [*leftovers, unused])
        assert all(path.exists() for path in [*foreign, used])


def test_damaged_files_are_left_out_with_one_line_each(folder: Path) -> None:
    with open_project(folder) as project:
        takes = [add(project, seed=i) for i in range(6)]
        unused = project.add_source(noise(1), RATE)
    json_files = [folder / "takes" / f"{take.id}.json" for take in takes]
    json_files[0].write_text("{")
    json_files[1].write_text("[]")
    json_files[2].write_text(json_files[2].read_text().replace(f'"{takes[2].file}"', '"../../etc/passwd"'))
    (folder / "takes" / takes[3].file).unlink()
    (folder / "takes" / takes[4].file).write_bytes(b"short")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with open_project(folder) as project:
            assert [take.id for take in project.takes()] == [takes[5].id]
    messages = [str(entry.message) for entry in caught if issubclass(entry.category, InputWarning)]
    assert len(messages) == 5
    assert not any("\n" in message for message in messages)
    assert all(path.exists() for path in [*json_files, unused])  # a damaged take may need the source


def test_one_process_per_project(project: Project, folder: Path) -> None:
    add(project)
    code = (
        "import sys; from pathlib import Path; from melody_jax.studio.project import open_project\n"
        "with open_project(Path(sys.argv[1])): pass"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 1
    assert "open in another studio; close that one" in child.stderr.splitlines()[-1]
    assert len(project) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from melody_jax.sampling.request import Request
from melody_jax.studio.project import open_project
from melody_jax.studio.takes import Release

stop = int(sys.argv[2])
count = 0

def counted(plain):
    def call(*arguments, **options):
        global count
        count += 1
        if count == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments, **options)
    return call

with open_project(Path(sys.argv[1])) as project:
    source = project.add_source(np.zeros(8000, np.float32), 8000)
    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    for seed in range(100):
        project.add_take(np.zeros(8000, np.float32), 8000, Request(prompt="a", seed=seed), Release(name="mini"),
                         model_hash="")
"""


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6, 7, 8])
def test_killed_at_any_step_history_is_intact(folder: Path, stop: int) -> None:
    """Before each sync and each renaming: two for the sound, two for the JSON of a take."""
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(stop)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    with open_project(folder) as project:
        takes = project.takes()
        assert len(takes) == (stop - 1) // 4
        assert all(len(project.read(take.id)) == 8000 for take in takes)
        names = {path.name for path in (folder / "takes").iterdir()}
        assert names == {f"{take.id}{suffix}" for take in takes for suffix in (".flac", ".json")}


def test_sources_are_stored_once_by_content(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    first = project.add_source(noise(1), RATE)
    assert project.add_source(noise(1), RATE) == first == project.source(first.name)
    assert first.stem == files.file_hash(first)
    for name in ("../lock", "x.flac", "0" * 64 + ".flac", first.name + "/..", ""):
        with pytest.raises(UnknownTake, match="no such sound"):
            project.source(name)
    monkeypatch.setattr(projects, "MAX_UNUSED_SOURCES", 2)
    project.add_source(noise(1, seed=1), RATE)
    with pytest.raises(UserError, match="2 uploaded sounds are not used by any take"):
        project.add_source(noise(1, seed=2), RATE)
    add(project, source=first, seconds=2)
    project.add_source(noise(1, seed=2), RATE)


def test_a_take_whose_parent_is_deleted_can_be_made_again(project: Project) -> None:
    parent = add(project)
    source = project.take_as_source(parent.id)
    child = add(project, source=source, strength=0.5)
    project.delete(parent.id)
    assert project.request(child.id).source == source
    assert source.is_file()
    damaged = add(project, seed=5)
    project.path(damaged.id).write_bytes(b"x")
    with pytest.raises(UserError, match="not the clip that was written"):
        project.take_as_source(damaged.id)


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


def test_a_setting_of_a_newer_version_is_refused(project: Project) -> None:
    take = add(project)
    with pytest.raises(UserError, match="has the setting 'tempo_map', which this version does not have"):
        request_of(take.settings | {"tempo_map": 1}, project.sources_folder)
    outside = {"file": "../../etc/passwd", "sha256": "0" * 64}
    with pytest.raises(UserError, match="not the name of a source"):
        request_of(take.settings | {"source": outside}, project.sources_folder)


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
