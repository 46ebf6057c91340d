"""Processes that train together on this machine, and features for them."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from melody_jax.config import load_config
from melody_jax.data.records import ShardManifest, encode_json, shard_name, write_manifest, write_shard
from melody_jax.sharding import make_mesh, state_sharding
from melody_jax.training.checkpoint import Checkpoints, abstract_like
from melody_jax.training.state import create_state, state_roles

ROOT = Path(__file__).parents[2]


CONFIG = "configs/lm_tiny.py"


SIZE = {
    "--stage.model.layers": "1",
    "--stage.model.width": "32",
    "--stage.model.ffn": "32",
    "--data.window_tokens": "40",
    "--eval_batches": "1",
    "--log_every": "1",
    "--mesh": "-1 2 1",
}


def write_features(folder: Path) -> str:
    """Sixteen records of counting tokens."""
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
    write_manifest(
        folder, ShardManifest(kind="features", settings=settings, versions={}, shard_count=1, shards=(shard,))
    )
    return str(folder)


class Run:
    """A run folder, and the processes that train in it on eight virtual devices, all of one or shared by several.

    `timeout` is the number of seconds in which a run must end.
    """

    def __init__(
        self, features: str, workdir: Path, options: dict[str, str], processes: int = 2, timeout: float = 300
    ) -> None:
        self.timeout = timeout
        self.workdir = workdir
        self.count = processes
        words = (word for name, value in (SIZE | options).items() for word in (name, *value.split()))
        self.options = [*words, "--data.folder", features, "--workdir", str(workdir)]
        self.processes: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={8 // self.count}"
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": ""}
        environment["PYTHONPATH"] = str(ROOT)
        join = [
            "--hosts.join",
            "--hosts.coordinator",
            f"localhost:{port}",
            "--hosts.count",
            str(self.count),
        ]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "train.py", CONFIG, *self.options]
                + ([*join, "--hosts.index", str(index)] if self.count > 1 else []),
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for index in range(self.count)
        ]

    def finish(self) -> None:
        """Waits for all of them; none may fail."""
        for process in self.processes:
            _, errors = process.communicate(timeout=self.timeout)
            assert process.returncode == 0, errors[-2000:]

    def train(self) -> None:
        self.start()
        self.finish()

    def until(self, condition: Callable[[], bool]) -> None:
        """Returns when `condition` holds; looks every millisecond. The processes must not end before."""
        while not condition():
            ended = [process for process in self.processes if process.poll() is not None]
            assert not ended, f"a process ended by itself: {ended[0].communicate()[1][-2000:]}"
            time.sleep(1e-3)

    def kill(self, victims: tuple[int, ...], patience: float) -> float:
        """SIGKILL; how many seconds later the others ended by themselves, or `patience`, when they are killed too."""
        for victim in victims:
            self.processes[victim].kill()
        began = time.monotonic()
        while time.monotonic() - began < patience and any(
            process.poll() is None for process in self.processes
        ):
            time.sleep(0.01)
        passed = time.monotonic() - began
        for process in self.processes:
            process.kill()
            process.communicate()
        return min(passed, patience)

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))

    def saved(self) -> int:
        """The last complete checkpoint."""
        steps = (
            int(folder.name) for folder in (self.workdir / "checkpoints").glob("*") if folder.name.isdigit()
        )
        return max(steps, default=0)

    def reached(self) -> int:
        """The last step in metrics.jsonl."""
        rows = self.rows()
        return rows[-1]["step"] if rows else 0

    def rows(self) -> list[dict[str, Any]]:
        """The metrics but for times; a line that is still being written is left out."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [
            {k: v for k, v in row.items() if k != "seconds" and not k.startswith("time/")} for row in rows
        ]

    def final(self) -> tuple[Any, dict[str, Any]]:
        """State and data position of the last checkpoint, on one device of this process."""
        config = load_config(ROOT / CONFIG, self.options)
        shapes = jax.eval_shape(lambda: create_state(config, jax.random.key(0)))
        checkpoints = Checkpoints(self.workdir)
        mesh = make_mesh((1, 1, 1), jax.devices()[:1])
        restored = checkpoints.restore(
            abstract_like(shapes, state_sharding(shapes, state_roles(config), mesh))
        )
        checkpoints.close()
        return restored


def assert_same_run(a: Run, b: Run) -> None:
    """Every bit of the last checkpoint, its position in the data, and every figure of every step."""
    (state, position), (other, other_position) = a.final(), b.final()
    assert position == other_position
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    assert a.rows() == b.rows()
