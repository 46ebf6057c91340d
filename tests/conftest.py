"""Compiled programs are kept between tests and runs: most of the suite's time is compiling the same few of them."""

import os
from pathlib import Path
from typing import Any

import pytest

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))  # in the environment: child processes share it
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
OPTIMISATION = "--xla_backend_optimization_level=1"  # compiles in three quarters of the time
os.environ["XLA_FLAGS"] = f"{OPTIMISATION} {os.environ.get('XLA_FLAGS', '')}".strip()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The worst relative error of each parity test, for the reader of CI's log."""
    reports = [
        report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, ())
    ]
    for report in sorted(reports, key=lambda report: report.nodeid):
        errors = [value for name, value in report.user_properties if name == "relative_error"]
        if errors and report.when == "call":
            terminalreporter.line(f"{max(errors):.1e}  {report.nodeid.removeprefix('tests/parity/')}")


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the release "tiny", random weights; it is only read."""
    from helpers.tiny import tiny_networks

    from melody_jax import release

    root = tmp_path_factory.mktemp("releases")
    for name, (params, config) in tiny_networks().items():
        release.save_network(root / "tiny", name, params, config, {})
    return root


@pytest.fixture(scope="session")
def melody(releases: Path) -> Any:
    """The release "tiny", loaded."""
    from melody_jax import load

    return load("tiny", folder=releases)
