"""Two processes train together on this machine (Gloo): what one process with the same devices would have learned."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from melody_jax.config import HostsConfig
from melody_jax.data.records import Manifest, encode_json, shard_name, write_manifest, write_shard
from melody_jax.errors import UserError

ROOT = Path(__file__).parents[1]
SIZE = ["--stage.model.layers", "1", "--stage.model.width", "32", "--stage.model.ffn", "32"]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sixteen records of counting tokens."""
    folder = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    records = [
        {
            "meta": encode_json({"id": str(i)}),
            "semantic_tokens": ((i + np.arange(60)) % 64).astype(np.int16),
            "latents": rng.normal(size=(60, 8)).astype(np.float16),
            "prefix_tokens": np.full((1, 1, 12), i % 8, np.int16),
            "window_starts": np.zeros(1, np.int32),
            "text_prefix_tokens": np.zeros((0, 12), np.int16),
        }
        for i in range(16)
    ]
    shard = write_shard(folder / shard_name("features", 0, 1), records)
    settings = {"hashes": {}}
    write_manifest(folder, Manifest(kind="features", settings=settings, versions={}, shard_count=1, shards=(shard,)))
    return str(folder)


def start(features: str, workdir: Path, devices: int, options: list[str]) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "train.py",
        "configs/lm_tiny.py",
        "--data.folder",
        features,
        "--data.window_tokens",
        "40",
    ]
    command += [*SIZE, "--workdir", str(workdir), "--eval_batches", "1", "--log_every", "1", *options]
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)  # type: ignore[call-overload]


def train(features: str, workdir: Path, processes: int, options: list[str]) -> None:
    """Trains on four devices, all of one process or shared by several."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started = []
    for index in range(processes):
        said = ["--hosts.join", "True", "--hosts.coordinator", f"localhost:{port}"]
        said += ["--hosts.count", str(processes), "--hosts.index", str(index)]
        started.append(start(features, workdir, 4 // processes, options + (said if processes > 1 else [])))
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]


def losses(workdir: Path) -> list[float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row.get("loss", row.get("eval/loss")) for row in rows]


def test_two_processes_learn_what_one_would_and_resume_alike(features: str, tmp_path: Path) -> None:
    options = ["--steps", "8", "--save_every", "4", "--eval_every", "4", "--mesh", "2", "2", "1"]
    train(features, tmp_path / "one", 1, options)
    train(features, tmp_path / "two", 2, options)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 10
    np.testing.assert_allclose(two, one, rtol=1e-4)
    (tmp_path / "two" / "checkpoints" / "8").rename(tmp_path / "gone")
    train(features, tmp_path / "two", 2, options)
    assert losses(tmp_path / "two") == two


def test_hosts_must_be_said_in_full() -> None:
    whole = {"join": True, "coordinator": "localhost:1", "count": 2, "index": 1}
    assert HostsConfig(**whole).index == 1  # type: ignore[arg-type]
    for change in ({"coordinator": ""}, {"count": 0}, {"index": 2}, {"join": False}):
        with pytest.raises(UserError, match="give join and none of the others, or all of them"):
            HostsConfig(**whole | change)  # type: ignore[arg-type]
