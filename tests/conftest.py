"""Settings of all tests: a cache of compiled programs, checks of shapes and types at run time, the tiny release.

Most of the suite's time is compiling; the cache is shared between tests, their child processes and runs.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import typechecks
from jaxtyping import install_import_hook

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))  # in the environment: child processes share it
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# These compile in less than half the time of the default ones.
QUICK_COMPILER = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{QUICK_COMPILER} {os.environ.get('XLA_FLAGS', '')}".strip()
SAMPLING = ("windows", "decode", "edit", "plan", "prompts", "sources")
"""Modules of sampling that take checked input; the others raise errors for users on input of any type."""
TYPE_CHECKED = (
    "melody_jax.models",
    "melody_jax.diffusion",
    *(f"melody_jax.sampling.{name}" for name in SAMPLING),
)
"""Modules whose annotations, shapes included, are checked at each call; MELODY_TYPE_CHECKS=0 turns this off."""
if os.environ.get("MELODY_TYPE_CHECKS", "1") != "0":
    install_import_hook(TYPE_CHECKED, f"{typechecks.__name__}.check")
SLOW = (
    "test_ablate.py::test_study",
    "test_ablate_sampling.py::",
    "test_batch_job.py::test_eight_devices_make_the_same_clips",
    "test_buckets.py::",
    "test_compose_cli.py::test_same_bytes_for_any_number_of_workers",
    "test_diagnose.py::test_from_end_to_end",
    "test_evaluate.py::test_a_folder_against_another",
    "test_evaluate.py::test_a_model_with_prompts",
    "test_export_sampler.py::",
    "test_fine_tuning.py::",
    "test_full_disk.py::",
    "test_hosts.py::test_killed",
    "test_hosts.py::test_two_processes",
    "test_nfe.py::test_the_paper_s_count_is_what_musiclm_runs[30.0",
    "test_object_store.py::test_a_corpus_composed",
    "test_prepare.py::test_an_interrupted_run_continues_from_a_bucket",
    "test_prepare.py::test_killed_and_run_again",
    "test_prepare.py::test_the_result_does_not_depend_on_workers",
    "test_preview.py::",
    "test_resume.py::",
    "test_scale.py::test_compiled_for_chips_that_are_not_here",
    "test_sharding.py::test_sharded_equals_single_device",
    "test_tfds_music.py::",
)
"""Beginnings of the names of slow tests: they train, start processes, or compile large programs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the slow tests."""
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(SLOW):
            item.add_marker("slow")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the largest relative error of each parity test."""
    reports = [
        report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, ())
    ]
    for report in sorted(reports, key=lambda report: report.nodeid):
        errors = [value for name, value in report.user_properties if name == "relative_error"]
        if errors and report.when == "call":
            terminalreporter.line(f"{max(errors):.1e}  {report.nodeid.removeprefix('tests/parity/')}")


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Frees the compiled programs of a file: they take memory maps, of which Linux gives a process 65,530."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the release "tiny", which has random weights; tests only read it."""
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


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system of memory://, empty."""
    fsspec = pytest.importorskip("fsspec", reason="the extra 'buckets' is not installed")

    monkeypatch.setenv("MELODY_BUCKET_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from helpers.studio_page import open_browser

    with open_browser() as started:
        yield started


@pytest.fixture(scope="module")
def gated(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page of a studio without networks (`helpers.studio_page.GatedStudio`)."""
    from helpers.studio_page import serve_gated

    with serve_gated(tmp_path_factory.mktemp("gated") / "project") as started:
        yield started


@pytest.fixture
def studio(gated: Any) -> Iterator[Any]:
    """`gated` without takes."""
    gated.clear()
    yield gated
    gated.finish()
