"""Weights & Biases: one run over restarts, offline with the real package; what a failing service leaves alone."""

import json
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.toy import ToyBatches, rows, run, toy_config

from melody_jax.config import WatchConfig
from melody_jax.errors import UserError
from melody_jax.extras import install_hint
from melody_jax.training.wandb_log import RUN_FILE, WandbLog

WATCH = WatchConfig(wandb_project="toys")
HEADER = 7
"""Bytes before the first record of a .wandb file, and before each piece of a record."""
BLOCK = 32_768


class FakeRun:
    """A run that remembers its rows; `broken` makes the service fail."""

    def __init__(self, broken: bool = False, **arguments: Any) -> None:
        self.arguments = arguments
        self.rows: list[dict[str, Any]] = []
        self.exit_code: int | None = None
        self.attempts = 0
        self._broken = broken

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, row: dict[str, Any]) -> None:
        self.attempts += 1
        if self._broken:
            raise OSError("the service is not reachable")
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[FakeRun]:
    """The runs that a stand-in of the package starts; parameter: whether its service fails."""
    started: list[FakeRun] = []

    def init(**arguments: Any) -> FakeRun:
        started.append(FakeRun(getattr(request, "param", False), **arguments))
        return started[-1]

    package = types.SimpleNamespace(
        init=init,
        Settings=dict,
        Audio=lambda audio, sample_rate: (audio, sample_rate),
        Image=lambda image: image,
    )
    monkeypatch.setitem(sys.modules, "wandb", package)
    return started


def test_rows_are_those_of_the_run(runs: list[FakeRun], tmp_path: Path) -> None:
    run(toy_config(tmp_path, watch=WATCH))
    (started,) = runs
    assert started.arguments["project"] == "toys"
    assert started.arguments["id"] == json.loads((tmp_path / RUN_FILE).read_text())["id"]
    assert started.arguments["config"]["steps"] == 50
    assert started.exit_code == 0
    written = [(row["step"], row.get("loss"), row.get("eval/loss")) for row in rows(tmp_path)]
    assert [(row["step"], row.get("train/loss"), row.get("eval/loss")) for row in started.rows] == written


def test_a_resumed_training_continues_the_run(runs: list[FakeRun], tmp_path: Path) -> None:
    config = toy_config(tmp_path, watch=WATCH)
    run(config, ToyBatches(interrupt=12))
    run(config)
    assert runs[0].arguments["id"] == runs[1].arguments["id"]
    assert runs[0].rows[-1]["step"] < runs[1].rows[0]["step"]


def test_previews_are_sent(runs: list[FakeRun], tmp_path: Path) -> None:
    audio = np.zeros(240, np.float32)
    with WandbLog(toy_config(tmp_path, watch=WATCH), tmp_path) as log:
        log.show(3, {"preview/original/0": (audio, 24_000, np.full((80, 1), 0.5))})
    (row,) = runs[0].rows
    assert row["preview/original/0/audio"] == (audio, 24_000)
    np.testing.assert_array_equal(row["preview/original/0/spectrogram"], np.full((80, 1), 127, np.uint8))


@pytest.mark.parametrize("runs", [True], indirect=True)
def test_a_failing_service_is_one_warning(
    runs: list[FakeRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = run(toy_config(tmp_path, watch=WATCH))
    assert int(state.step) == 50
    assert runs[0].attempts == 1
    warning = "warning: Weights & Biases gets no more data of this process (the service is not reachable)"
    assert capsys.readouterr().err.count(warning) == 1


def test_a_failed_training_is_marked(runs: list[FakeRun], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite"):
        run(toy_config(tmp_path, watch=WATCH), ToyBatches(poison=12))
    assert runs[0].exit_code == 1


def test_off_by_default(runs: list[FakeRun], tmp_path: Path) -> None:
    run(toy_config(tmp_path, steps=5))
    assert not runs
    assert not (tmp_path / RUN_FILE).exists()


def test_a_missing_package_and_a_damaged_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        run(toy_config(tmp_path, watch=WATCH))
    assert "the extra 'wandb' provides it" in install_hint(str(caught.value.name))
    (tmp_path / RUN_FILE).write_text("[]")
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=None))
    with pytest.raises(UserError, match="not the id of a run"):
        run(toy_config(tmp_path, watch=WATCH))


def test_offline_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = toy_config(tmp_path, watch=WATCH)
    run(config, ToyBatches(interrupt=12))
    run(config)
    run_id = json.loads((tmp_path / RUN_FILE).read_text())["id"]
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
    sent = [row for file in files for row in history(file)]
    assert [row["step"] for row in sent] == [row["step"] for row in rows(tmp_path)]
    assert [row.get("train/loss") for row in sent] == [row.get("loss") for row in rows(tmp_path)]


def history(file: Path) -> Iterator[dict[str, Any]]:
    """The rows in a .wandb file: protocol buffers in the log format of LevelDB."""
    from wandb.proto import wandb_internal_pb2

    for content in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            yield {
                item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item
            }


def records(content: bytes) -> Iterator[bytes]:
    position = HEADER
    pieces = b""
    while position < len(content):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        pieces += content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # a complete record, the last piece of one
            yield pieces
            pieces = b""
