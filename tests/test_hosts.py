"""Two processes train together on this machine (Gloo): what one process with the same devices would have learned.

Killed at any moment and started again, they end with the same bits; `benchmarks/kill.py` does the same twenty times.
"""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.hosts import Run, assert_same_run, write_features

from melody_jax.config import HostsConfig
from melody_jax.errors import UserError

OPTIONS = {"--steps": "24", "--save_every": "6", "--eval_every": "12"}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_features(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def two(features: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two processes that nobody disturbed."""
    run = Run(features, tmp_path_factory.mktemp("two"), OPTIONS)
    run.train()
    return run


def test_two_processes_learn_what_one_would(features: str, two: Run, tmp_path: Path) -> None:
    one = Run(features, tmp_path, OPTIONS, processes=1)
    one.train()
    losses = [[row.get("loss", row.get("eval/loss")) for row in run.rows()] for run in (one, two)]
    assert len(losses[0]) == 26
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_two_processes_that_a_tensor_axis_spans_read_the_same_rows(
    features: str, two: Run, tmp_path: Path
) -> None:
    run = Run(features, tmp_path, OPTIONS | {"--mesh": "1 1 -1"})
    run.train()
    losses = [[row.get("loss", row.get("eval/loss")) for row in one.rows()] for one in (run, two)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_killed_three_times_and_terminated_ends_with_the_same_bits(
    features: str, two: Run, tmp_path: Path
) -> None:
    """Killed while saving, while training and while starting; SIGTERM to one makes both save the same step."""
    run, rng = Run(features, tmp_path, OPTIONS), np.random.default_rng(0)
    moments: list[Callable[[], bool]] = [run.saving, lambda: run.reached() >= run.saved() + 2, lambda: True]
    for moment in moments:
        run.start()
        run.until(moment)
        run.kill(((0,), (1,), (0, 1))[rng.integers(3)], patience=0.0)
    run.start()
    config, before = tmp_path / "config.json", time.time()
    run.until(lambda: config.stat().st_mtime > before)
    run.processes[1].send_signal(signal.SIGTERM)
    run.finish()
    assert run.saved() == run.reached() < 24
    run.train()
    assert_same_run(run, two)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (signal.SIGKILL, r"a computation shared with the others failed \(.*\)"),
        (signal.SIGSTOP, "process 1 has given no sign of life for 30 s"),
    ],
)
def test_a_lost_process_ends_the_others_with_one_line(
    loss: signal.Signals, reason: str, features: str, tmp_path: Path
) -> None:
    run = Run(features, tmp_path, OPTIONS | {"--steps": "100000"})
    run.start()
    run.until(lambda: run.reached() >= 6)
    survivor, victim = run.processes
    victim.send_signal(loss)
    _, errors = survivor.communicate(timeout=90)
    victim.kill()
    victim.communicate()
    (line,) = [line for line in errors.splitlines() if line.startswith("error")]
    advice = "if another process has ended, start all of them again with the same command, and they resume"
    assert re.fullmatch(f"error: process 0 of 2: {reason}; {advice} from the last checkpoint", line)
    assert survivor.returncode == 1
    assert "Traceback" not in errors
    assert "Check failure" not in errors


def test_hosts_must_be_said_in_full() -> None:
    whole = {"join": True, "coordinator": "localhost:1", "count": 2, "index": 1}
    assert HostsConfig(**whole).index == 1  # type: ignore[arg-type]
    for change in ({"coordinator": ""}, {"count": 0}, {"index": 2}, {"join": False}):
        with pytest.raises(UserError, match="set join alone, or all four"):
            HostsConfig(**whole | change)  # type: ignore[arg-type]
