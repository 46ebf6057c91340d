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
from helpers.buckets import BUCKET, CLIENTS, missing_package, serving, write_data

from melody_jax import object_store
from melody_jax.object_store import RemoteFolder
from melody_jax.training.remote_checkpoints import complete_steps

HELPERS = Path(__file__).parent


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


def program(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        object_store.CACHE_VARIABLE: str(cache),
        "PYTHONPATH": f"{HELPERS.parent}:{HELPERS}",
    }
    command = [sys.executable, "-m", "helpers.buckets", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def completed(*arguments: object, cache: Path) -> str:
    result = program(*arguments, cache=cache)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def objects(url: str) -> dict[str, bytes]:
    remote = RemoteFolder(url)
    return {name: remote.read(name) for name in remote.sizes()}


def test_a_killed_training_resumes_bit_for_bit(scheme: str, tmp_path: Path) -> None:
    """Data and work folder in the bucket; the run is resumed by a machine that has seen neither."""
    data = f"{scheme}://{BUCKET}/data"
    workdir = f"{scheme}://{BUCKET}/run"
    write_data(tmp_path)
    RemoteFolder(data).upload(tmp_path, [path.name for path in tmp_path.iterdir()])
    expected = completed("train", tmp_path, tmp_path / "run", cache=tmp_path / "cache")
    killed = program("train", data, workdir, "kill", cache=tmp_path / "one")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    steps = complete_steps(RemoteFolder(workdir) / "checkpoints")
    assert steps
    assert max(steps) <= 10
    assert completed("train", data, workdir, cache=tmp_path / "two") == expected
    assert complete_steps(RemoteFolder(workdir) / "checkpoints") == [15, 20]
    rows = [json.loads(line) for line in RemoteFolder(workdir).read("metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [5, 10, 15, 20]
    assert completed("train", data, workdir, cache=tmp_path / "three") == expected  # restored, nothing to do


def test_a_killed_batch_job_leaves_the_same_objects(scheme: str, tmp_path: Path) -> None:
    lines = [{"prompt": "noise", "seed": seed} for seed in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    RemoteFolder(f"{scheme}://{BUCKET}").upload(tmp_path, ["prompts.jsonl"])
    prompts = f"{scheme}://{BUCKET}/prompts.jsonl"
    outs = [f"{scheme}://{BUCKET}/{name}" for name in ("expected", "resumed")]
    assert completed("sample", prompts, outs[0], cache=tmp_path / "one") == "12\n"
    killed = program("sample", prompts, outs[1], "kill", cache=tmp_path / "one")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    made = int(completed("sample", prompts, outs[1], cache=tmp_path / "two"))
    assert 6 <= made < 12
    assert completed("sample", prompts, outs[1], cache=tmp_path / "three") == "0\n"
    expected, resumed = map(objects, outs)
    assert expected.keys() == resumed.keys()
    assert len(expected) == 13
    manifests = [_without_times(content.pop("manifest.jsonl")) for content in (expected, resumed)]
    assert manifests[0] == manifests[1]
    assert expected == resumed


def _without_times(manifest: bytes) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in manifest.splitlines()]
    times = ("seconds_taken", "made_at")
    return [{name: value for name, value in entry.items() if name not in times} for entry in entries]
