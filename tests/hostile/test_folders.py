"""Folders with links, loops, foreign names and no permissions: everything is listed once, or named with a reason."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hostile.tables import touch
from melody_jax.ablation.ablate import ablate
from melody_jax.ablation.runs import AblateConfig
from melody_jax.data.layouts import recordings
from melody_jax.errors import UserError
from melody_jax.evaluation.diagnose import DiagnoseConfig, diagnose
from melody_jax.evaluation.evaluate import evaluate
from melody_jax.evaluation.evaluate_config import EvaluateConfig
from melody_jax.folders import walk


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "x.wav", "deep/y.wav")
    touch(tmp_path / "source", "a.wav", "sub/b.wav")
    source = tmp_path / "source"
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "sub" / "up").symlink_to(source)
    (source / "again").symlink_to(source / "sub")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path)
    (source / "file.wav").symlink_to(source / "a.wav")
    (source / "broken.wav").symlink_to(source / "none")
    os.mkfifo(source / "fifo.wav")
    skipped: dict[str, str] = {}
    assert walk(source, skipped) == ["a.wav", "file.wav", "linked/deep/y.wav", "linked/x.wav", "sub/b.wav"]
    assert skipped == {"broken.wav": "a broken symbolic link", "fifo.wav": "not a regular file"}
    problems = {recording.id: recording.problem for recording in recordings(source, "files", None)}
    assert problems["linked/deep/y.wav"] == ""
    assert problems["broken.wav"] == problems["fifo.wav"] == "unreadable"


def test_names_that_are_not_utf8_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, os.fsdecode(b"caf\xe9.wav"), "b.wav")
    by_name = {recording.id: recording for recording in recordings(tmp_path, "files", None)}
    assert set(by_name) == {"caf\\xe9.wav", "b.wav"}
    assert Path(by_name["caf\\xe9.wav"].path).is_file()


def test_folders_without_permission_are_named(unprivileged: Path) -> None:
    touch(unprivileged, "a.wav", "locked/b.wav", "blind/c.wav")
    (unprivileged / "locked").chmod(0)
    (unprivileged / "blind").chmod(0o600)  # listed, but nothing in it can be looked up
    (unprivileged / "c.csv").write_text("file,caption\na.wav,x\nblind/c.wav,y\n")
    try:
        problems = {r.id: (r.problem, r.detail) for r in recordings(unprivileged, "files", None)}
        assert problems["a.wav"] == ("", "")
        assert problems["locked"] == ("unreadable", "Permission denied")
        assert not any(name.startswith("blind") and not problem for name, (problem, _) in problems.items())
        captioned = {r.id: r.problem for r in recordings(unprivileged, "files", unprivileged / "c.csv")}
        assert captioned["blind/c.wav"] in ("missing", "unreadable")
        (unprivileged / "c.csv").chmod(0)
        with pytest.raises(UserError, match=r"c\.csv: cannot be read \(Permission denied\)"):
            recordings(unprivileged, "files", unprivileged / "c.csv")
        with pytest.raises(UserError, match="cannot be read"):
            recordings(unprivileged / "locked", "files", None)
    finally:
        for name in ("locked", "blind"):
            (unprivileged / name).chmod(0o700)


@pytest.mark.parametrize(
    "measure",
    [
        lambda out: evaluate(EvaluateConfig(clips="clips", reference="reference", out=out, cache=out)),
        lambda out: diagnose(DiagnoseConfig(out=out, cache=out)),
        lambda out: ablate(AblateConfig(study="steps", out=out, runs=out)),
    ],
    ids=["evaluate", "diagnose", "ablate"],
)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(
    measure: Callable[[str], object], unprivileged: Path
) -> None:
    locked = unprivileged / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"locked/out: the folder .*locked cannot be written"):
        measure(str(locked / "out"))
