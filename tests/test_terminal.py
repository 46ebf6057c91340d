"""The commands in unusual surroundings: closed streams, short readers, foreign encodings, missing devices and homes."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from melody_jax import runtime
from melody_jax.errors import InputWarning, cli_entry

ROOT = Path(__file__).parents[1]
SCRIPT = "from melody_jax.cli import main; main()"


def melody(*arguments: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Runs `melody` with arguments; `shell` is added to the command line, such as a redirection."""
    command = 'exec "$0" -c "$1" "${@:2}" ' + shell
    return subprocess.run(
        ["bash", "-c", command, sys.executable, SCRIPT, *arguments],
        capture_output=True, text=True, timeout=120, cwd=environment.pop("cwd", None),
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [("--help",), ("sample", "--help")])
def test_a_reader_that_ends_early(arguments: tuple[str, ...]) -> None:
    done = melody(*arguments, shell="| true")
    assert done.stderr == ""


def test_closed_streams() -> None:
    done = melody("--help", shell=">&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = melody("sample", shell="2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    done = melody("sample", "piano", "--stream", shell=">&-")
    assert done.returncode == 2
    assert (
        done.stderr == "error: --stream writes samples to standard output; pipe it into a player or a file\n"
    )


def test_a_full_disk_below_standard_output() -> None:
    done = melody("--help", shell=">/dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("No space left on device\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("platform", ["cuda", "tpu", "abacus"])
def test_devices_that_are_not_here(platform: str) -> None:
    if any(device.platform == platform for device in jax.devices()):
        pytest.skip("it is here")
    done = melody("nfe", JAX_PLATFORMS=platform)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: JAX_PLATFORMS is '{platform}', but there is no such device")
    assert done.stderr.endswith("set it to cpu, or unset it\n")
    assert done.stderr.count("\n") == 1


def test_a_script_on_standard_input() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-", "sample", "--help"],
        input=SCRIPT, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.startswith("usage: melody sample ")


def test_help_without_docstrings() -> None:
    done = subprocess.run(
        [sys.executable, "-OO", str(ROOT / "train.py"), "-h"], capture_output=True, text=True
    )
    assert "CONFIG is the name of a config" in done.stdout
    assert "None" not in done.stdout
    done = subprocess.run(
        [sys.executable, "-OO", str(ROOT / "sample.py"), "-h"], capture_output=True, text=True
    )
    assert "Makes music from a text prompt with a released model." in done.stdout


def test_texts_that_the_console_cannot_print() -> None:
    for encoding in ("ascii", "latin-1:strict", "utf-8"):
        done = melody("sample", "piano", "--model", "悲\udcff", PYTHONIOENCODING=encoding)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
    printed = subprocess.run(
        [sys.executable, "-c", "from melody_jax.errors import cli_entry; cli_entry(lambda: print('悲.wav'))()"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
    )  # fmt: skip
    assert printed.stdout == "\\u60b2.wav\n"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    updates: dict[str, object] = {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    monkeypatch.setattr(Path, "home", none)
    runtime.enable_compile_cache()
    assert "jax_compilation_cache_dir" not in updates
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime.enable_compile_cache()
    assert updates["jax_compilation_cache_dir"] == str(tmp_path / "melody_jax")


def test_a_cache_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    runtime.enable_compile_cache()
    folder = tmp_path / "file" / "melody_jax"
    assert capsys.readouterr().err == (
        f"warning: {folder}: compiled programs cannot be kept there (Not a directory)\n"
    )


def test_warnings_and_system_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def warns() -> None:
        import warnings

        warnings.warn("one\nline", InputWarning, stacklevel=1)

    cli_entry(warns)()
    assert capsys.readouterr().err == "warning: one line\n"

    def denied() -> None:
        raise PermissionError(13, "Permission denied", "corpus/a.wav")

    with pytest.raises(SystemExit) as caught:
        cli_entry(denied)()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: corpus/a.wav: Permission denied\n"


def test_the_memory_that_is_free() -> None:
    available = runtime.available_memory()
    assert available is None or available > 0
