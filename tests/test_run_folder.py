"""Run folders: any path works or is refused before the first step, one training at a time, damage is one line."""

import dataclasses
import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers.arrays import assert_same
from helpers.toy import ToyBatches, rows, run, toy_config

from melody_jax.errors import UserError
from melody_jax.sharding import make_mesh, state_sharding
from melody_jax.training import notes
from melody_jax.training.checkpoint import Checkpoints, abstract_like
from melody_jax.training.run_folder import check_path, check_resume, read_run
from melody_jax.training.state import create_state, state_roles

TESTS = Path(__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""Reads that a failed one abandons end at any time later."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    workdir = tmp_path_factory.mktemp("run")
    return workdir, run(toy_config(workdir, steps=10, save_every=5))


@pytest.fixture(autouse=True)
def hooks() -> Iterator[None]:
    """A failed read leaves its filters in place, for the process ends then."""
    before = sys.unraisablehook, sys.excepthook
    yield
    gc.collect()
    sys.unraisablehook, sys.excepthook = before
    notes._ONE_LINE.is_reading = False


@pytest.mark.parametrize(
    "name", [" lead", "lr=1e-3, µ", "a%20b", "b:", "~x", "a{b,c}", "]", "new\nline", "5"]
)
def test_paths_that_work(name: str, tmp_path: Path) -> None:
    config = toy_config(tmp_path / name, steps=4, save_every=2)
    whole = run(config)
    shutil.rmtree(tmp_path / name / "checkpoints" / "4")
    assert_same(run(config), whole)


@pytest.mark.parametrize("name", ["lr[1]", r"a\b", "a*b", "a?b", "gs:", "s3:", "\udce9"])
def test_paths_that_the_checkpoint_library_misreads_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint library|not UTF-8"):
        run(toy_config(tmp_path / name / "run"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["https://host/x", "file:///data"])
def test_urls_are_refused_by_name(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="a URL; this must be on a disk"):
        run(toy_config(url))
    with pytest.raises(UserError, match="a URL; this must be on a disk"):
        read_run(Path(url))
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in ("file", "file/below"):
        with pytest.raises(UserError, match="file is a file, it must be a folder"):
            run(toy_config(tmp_path / path))
    with pytest.raises(UserError, match="cannot be made"):
        run(toy_config("/proc/run"))
    check_path(tmp_path)


def test_a_second_training_is_refused_and_the_first_unharmed(finished: Any, tmp_path: Path) -> None:
    class Second(ToyBatches):
        def __next__(self) -> Any:
            if self.position == 7:
                with pytest.raises(UserError, match="another training is running in this folder"):
                    run(toy_config(tmp_path, steps=10, save_every=5))
            return super().__next__()

    assert_same(run(toy_config(tmp_path, steps=10, save_every=5), Second()), finished[1])
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [5, 10]


def test_every_damaged_file_of_a_checkpoint_is_one_line_or_harmless(finished: Any, tmp_path: Path) -> None:
    """Missing, cut short, empty, with a changed byte, or JSON of another shape."""
    config = toy_config(finished[0], steps=10)
    shapes = jax.eval_shape(lambda: create_state(config, jax.random.key(0)))
    sharding = state_sharding(shapes, state_roles(config), make_mesh((1, 1, 1), jax.devices()[:1]))
    abstract = abstract_like(shapes, sharding)
    step = Path("checkpoints") / "10"
    names = sorted(
        path.relative_to(finished[0]) for path in (finished[0] / step).rglob("*") if path.is_file()
    )
    names = [name for name in names if "ocdbt.process_0" not in name.parts]  # what nobody reads
    refused, messages = set(), []
    for name in names:
        data = (finished[0] / name).read_bytes()
        middle = len(data) // 2
        changed = data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :]
        for damaged in (None, data[:middle], changed, b"[[]]"):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            shutil.copytree(finished[0], tmp_path / "run")
            (tmp_path / "run" / name).unlink()
            if damaged is not None:
                (tmp_path / "run" / name).write_bytes(damaged)
            try:
                checkpoints = Checkpoints(tmp_path / "run")
                state, position = checkpoints.restore(abstract)
            except UserError as error:
                messages.append(str(error))
                refused.add(name.parts[2])
            else:
                assert_same(state, finished[1])
                assert position == {"position": 10}
    assert refused >= {"state", "ema", "data"}
    assert all("cannot be" in line and "delete" not in line and "\n" not in line for line in messages)


def test_a_damaged_checkpoint_prints_one_line(finished: Any, tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "10" / "state" / "manifest.ocdbt").write_bytes(b"")
    code = f"""
import sys
sys.path[:0] = [{str(TESTS)!r}]
from helpers.toy import run, toy_config
from melody_jax.errors import cli_entry
cli_entry(lambda: run(toy_config({str(tmp_path / "run")!r}, steps=12, save_every=5)))()
"""
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "to continue from step 5, move that folder elsewhere" in done.stderr


def test_the_checkpoint_library_warns_in_one_line_and_not_in_a_normal_run(
    tmp_path: Path, capsys: Any
) -> None:
    run(toy_config(tmp_path, steps=4, save_every=2))
    run(toy_config(tmp_path, steps=6, save_every=2))
    assert "library" not in capsys.readouterr().err
    record = logging.LogRecord("absl", logging.WARNING, "/x/orbax/y.py", 1, "skipped\nmore", (), None)
    assert not logging.getLogger("absl").filter(record)
    assert capsys.readouterr().err == "checkpoint library: skipped\n"
    record = logging.LogRecord("absl", logging.WARNING, "/x/other/y.py", 1, "not ours", (), None)
    assert logging.getLogger("absl").filter(record)


class Interrupting(ToyBatches):
    workdir: Path

    def __next__(self) -> Any:
        if self.position == self.interrupt:
            self.interrupt = -1
            while not (self.workdir / "checkpoints" / "5").exists():  # it is written in the background
                time.sleep(0.01)
            signal.raise_signal(signal.SIGINT)
        return super().__next__()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal: a shell that runs the tests in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_saves_and_resumes_identically(finished: Any, tmp_path: Path, capsys: Any) -> None:
    config = toy_config(tmp_path, steps=10, save_every=5)
    batches = Interrupting(interrupt=6)
    batches.workdir = tmp_path
    assert int(run(config, batches).step) == 7
    line = capsys.readouterr().err
    assert "Ctrl-C: saving after the current step" in line
    assert "checkpoints/5 is complete" in line
    assert (tmp_path / "checkpoints" / "7").is_dir()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same(run(config), finished[1])


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = [{str(TESTS)!r}]
from helpers.toy import ToyBatches, run, toy_config
class Twice(ToyBatches):
    def __next__(self):
        if self.position == 6:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return super().__next__()
run(toy_config({str(tmp_path)!r}, steps=10, save_every=5), Twice())
"""
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == -signal.SIGINT
    assert "Ctrl-C again stops at once" in done.stderr
    assert not (tmp_path / "checkpoints" / "7").exists()


def test_a_run_of_an_earlier_version_resumes_with_the_defaults_of_new_fields(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "run", steps=4, save_every=2)
    undisturbed = run(config)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    file = tmp_path / "run" / "config.json"
    record = json.loads(file.read_text())
    del record["config"]["optimizer"]["weight_decay"]
    del record["config"]["accumulate"]
    file.write_text(json.dumps(record))
    assert_same(run(config), undisturbed)
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"another config \(accumulate differ\)"):
        check_resume(tmp_path / "run", dataclasses.replace(config, accumulate=2), {})
