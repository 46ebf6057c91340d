"""Data, checkpoints and clips in the buckets of servers on this machine: killed, resumed, the same bits."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.buckets import BUCKET, CLIENTS, missing_package, sample, serving, train_toy, write_data
from helpers.hosts import Run, assert_same_run, write_features

from melody_jax import object_store
from melody_jax.files import make_folder
from melody_jax.object_store import RemoteFolder
from melody_jax.training.remote_checkpoints import complete_steps

TESTS = Path(__file__).parent


@pytest.fixture(params=sorted(CLIENTS), scope="module")
def scheme(request: pytest.FixtureRequest) -> Iterator[str]:
    """The scheme of a store that is served with a bucket, and that this process and its children use."""
    missing = missing_package(request.param)
    if missing:
        pytest.skip(f"{missing} is not installed")
    with serving(request.param) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        if request.param == "s3":
            import s3fs

            s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
        yield request.param


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of copies of this process; a killed one has another, as on another machine."""
    monkeypatch.setenv(object_store.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def run_killed(*arguments: object, cache: Path) -> None:
    environment = os.environ | {
        object_store.CACHE_VARIABLE: str(cache),
        "PYTHONPATH": f"{TESTS.parent}:{TESTS}",
    }
    command = [sys.executable, "-m", "helpers.buckets", *map(str, arguments)]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]


def test_a_killed_training_resumes_bit_for_bit(scheme: str, tmp_path: Path) -> None:
    """Data and work folder in the bucket; the run is resumed by a machine that has seen neither."""
    data = f"{scheme}://{BUCKET}/data"
    workdir = f"{scheme}://{BUCKET}/run"
    write_data(make_folder(tmp_path / "data"))
    RemoteFolder(data).upload(tmp_path / "data", [path.name for path in (tmp_path / "data").iterdir()])
    run_killed("train", data, workdir, cache=tmp_path / "killed")
    steps = complete_steps(RemoteFolder(workdir) / "checkpoints")
    assert steps
    assert max(steps) <= 10
    assert train_toy(data, workdir) == train_toy(str(tmp_path / "data"), str(tmp_path / "run"))
    assert complete_steps(RemoteFolder(workdir) / "checkpoints") == [15, 20]
    rows = [json.loads(line) for line in RemoteFolder(workdir).read("metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [5, 10, 15, 20]


def test_a_killed_batch_job_leaves_the_same_objects(scheme: str, tmp_path: Path) -> None:
    """As an uninterrupted job on a disk; only the times in the manifest differ."""
    lines = [{"prompt": "noise", "seed": seed} for seed in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    RemoteFolder(f"{scheme}://{BUCKET}").upload(tmp_path, ["prompts.jsonl"])
    prompts = f"{scheme}://{BUCKET}/prompts.jsonl"
    out = f"{scheme}://{BUCKET}/clips"
    run_killed("sample", prompts, out, cache=tmp_path / "killed")
    assert 6 <= sample(prompts, out) < 12
    assert sample(prompts, out) == 0
    assert sample(prompts, str(tmp_path / "clips")) == 12
    expected = {path.name: path.read_bytes() for path in (tmp_path / "clips").iterdir()}
    remote = RemoteFolder(out)
    resumed = {name: remote.read(name) for name in remote.sizes()}
    manifests = [_without_times(content.pop("manifest.jsonl")) for content in (expected, resumed)]
    assert manifests[0] == manifests[1]
    assert len(expected) == 12
    assert resumed == expected


def test_two_processes_write_checkpoints_to_gs_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the first checkpoint and resumed: what two undisturbed processes with a disk learn."""
    if missing := missing_package("gs"):
        pytest.skip(f"{missing} is not installed")
    options = {"--steps": "12", "--save_every": "4", "--eval_every": "0"}
    features = write_features(make_folder(tmp_path / "features"))
    undisturbed = Run(features, tmp_path / "run", options)
    undisturbed.train()
    with serving("gs") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        data = RemoteFolder(f"gs://{BUCKET}/features")
        data.upload(Path(features), [path.name for path in Path(features).iterdir()])
        remote = RemoteFolder(f"gs://{BUCKET}/two")
        run = Run(data.url, Path(remote.url), options)
        run.start()
        run.until(lambda: 4 in complete_steps(remote / "checkpoints"))
        run.kill((0, 1), patience=5)
        monkeypatch.setenv(object_store.CACHE_VARIABLE, str(tmp_path / "another"))
        run.train()
        assert complete_steps(remote / "checkpoints") == [8, 12]
        remote.download(remote.sizes(), tmp_path / "copy")
    assert_same_run(undisturbed, Run(features, tmp_path / "copy", options))


def _without_times(manifest: bytes) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in manifest.splitlines()]
    times = ("seconds_taken", "made_at")
    return [{name: value for name, value in entry.items() if name not in times} for entry in entries]
