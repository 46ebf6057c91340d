"""The studio's project folder: takes that survive a killed process, sources, pages."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.fake_system import RATE
from helpers.studio_project import RELEASE, add, noise

from melody_jax import audio, files
from melody_jax.errors import InputWarning, UserError
from melody_jax.sampling.request import Request
from melody_jax.studio import project as projects
from melody_jax.studio.project import MAX_PAGE, Project, UnknownTake, open_project
from melody_jax.studio.takes import Release, request_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "project"


@pytest.fixture
def project(folder: Path) -> Iterator[Project]:
    with open_project(folder) as opened:
        yield opened


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


def test_a_setting_of_a_newer_version_is_refused(project: Project) -> None:
    take = add(project)
    with pytest.raises(UserError, match="has the setting 'tempo_map', which this version does not have"):
        request_of(take.settings | {"tempo_map": 1}, project.sources_folder)
    outside = {"file": "../../etc/passwd", "sha256": "0" * 64}
    with pytest.raises(UserError, match="not the name of a source"):
        request_of(take.settings | {"source": outside}, project.sources_folder)
