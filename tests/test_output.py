"""Where clips go: links, read-only files, long names, and disks that fill, in every command of sampling that writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from melody_jax import audio, cli
from melody_jax.errors import UserError
from melody_jax.sampling import cascade
from melody_jax.sampling.cascade import Melody
from melody_jax.systems import command

TESTS = Path(__file__).parent
FAST = ["--seconds", "0.5", "--steps", "1", "--guidance-scale", "1", "--lm-guidance-scale", "1"]
MOUNTED = [
    "unshare", "--map-root-user", "--mount", "sh", "-c",
    'mount -t tmpfs -o size=64k none "$0" && exec "$@"',
]  # fmt: skip


@pytest.fixture(autouse=True)
def loaded(melody: Melody, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_load", lambda config, needs_tokenizer: melody)


def sample(*arguments: str) -> None:
    cli.run(["sample", "slow sad cello", *FAST, *arguments])


def test_a_link_stays_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "target.wav").write_bytes(b"old")
    (tmp_path / "link.wav").symlink_to(tmp_path / "target.wav")
    sample("--out", str(tmp_path / "link.wav"))
    assert (tmp_path / "link.wav").is_symlink()
    assert len(audio.read(tmp_path / "target.wav")) == 12_000
    assert f"link.wav (a link to {tmp_path / 'target.wav'}): 0.5 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("read_only.wav", "the file is read-only"),
        ("x" * 252 + ".wav", "a name of 256 bytes; at most 255 are possible"),
        ("folder.wav", "is a folder"),
        ("dangling.wav", "the folder .*/absent does not exist"),
        ("pipe.wav", "not a regular file"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "read_only.wav").write_bytes(b"old")
    (tmp_path / "read_only.wav").chmod(0o444)
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "absent" / "a.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(Melody, "run", None)
    with pytest.raises(UserError, match=message):
        sample("--out", str(tmp_path / name))
    assert sorted(os.listdir(tmp_path)) == before


def test_a_name_that_only_its_number_makes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Melody, "run", None)
    with pytest.raises(UserError, match="a name of 257 bytes"):
        sample("--out", str(tmp_path / f"{'x' * 251}.wav"), "--batch", "2")


def test_the_folder_of_a_batch_job_is_checked_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_load", None)
    (tmp_path / "file").write_text("")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "piano"}')
    for name, message in (
        ("file", "is not a folder"),
        ("file/a", "is not a folder"),
        ("x" * 256, "256 bytes"),
    ):
        with pytest.raises(UserError, match=message):
            cli.run(["sample", "--prompts", str(prompts), "--out", str(tmp_path / name)])


def test_an_exported_sampler_needs_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "load", None)
    (tmp_path / "file").write_text("")
    for name, message in (
        ("file", "exists; give a new name"),
        ("file/a", "is not a folder"),
        ("x" * 256, "256 b"),
    ):
        with pytest.raises(UserError, match=message):
            cli.run(["export-sampler", "--out", str(tmp_path / name)])


SCRIPT = """
import os, sys
from pathlib import Path
import jax
sys.path[:0] = [sys.argv[1]]
from helpers.tiny import tiny_networks
from melody_jax import release
from melody_jax.cli import main
disk, releases = Path(sys.argv[2]), sys.argv[3]
fast = sys.argv[4:] + ["--model", "tiny", "--folder", releases]
prompts = Path(releases) / "prompts.jsonl"
prompts.write_text('{"prompt": "piano", "seconds": 0.5}\\n{"prompt": "cello", "seconds": 3}')

def run(*arguments):
    sys.argv = ["melody", *arguments]
    try:
        main()
        raise AssertionError("nothing was said")
    except SystemExit as error:
        assert error.code == 2, error.code

(disk / "song.wav").write_bytes(b"old")
run("sample", "piano", *fast, "--seconds", "3", "--out", str(disk / "song.wav"))
assert (disk / "song.wav").read_bytes() == b"old"
os.unlink(disk / "song.wav")
run("sample", "--prompts", str(prompts), *fast, "--batch", "1", "--out", str(disk))
assert sorted(os.listdir(disk)) == ["000000.wav", "manifest.jsonl"], os.listdir(disk)
assert (disk / "manifest.jsonl").read_text().count("\\n") == 1
(disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
os.unlink(disk / "000000.wav")
run("export-sampler", "--steps", "1", "--model", "tiny", "--folder", releases, "--out", str(disk / "exported"))
assert sorted(os.listdir(disk)) == ["filler", "manifest.jsonl"], os.listdir(disk)
os.close(1)
os.open(disk / "stream", os.O_WRONLY | os.O_CREAT)
run("sample", "piano", *fast, "--stream")
"""


def test_a_disk_that_fills_is_one_line(tmp_path: Path, releases: Path) -> None:
    probe = subprocess.run([*MOUNTED, str(tmp_path), "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {probe.stderr.strip()}")
    command = [
        *MOUNTED,
        str(tmp_path),
        sys.executable,
        "-c",
        SCRIPT,
        str(TESTS),
        str(tmp_path),
        str(releases),
    ]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([*command, *FAST[2:]], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if not line.startswith("0 s of music")]
    assert len(lines) == 4, done.stderr
    assert all(line.startswith("error: ") and "No space left on device" in line for line in lines), lines
