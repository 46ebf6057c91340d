"""Object stores on this machine, and programs that work in their buckets and can be killed there.

    python -m helpers.buckets train DATA WORKDIR
    python -m helpers.buckets sample PROMPTS OUT

The program sends itself SIGKILL in the middle of its work, once the bucket has something to resume from.
"""

import contextlib
import hashlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from helpers.fake_system import FakeSystem
from helpers.toy import toy_config
from melody_jax import audio, mirror
from melody_jax.config import DataConfig
from melody_jax.data import records
from melody_jax.data.pipeline import TrainingBatches
from melody_jax.object_store import RemoteFolder
from melody_jax.sampling.batch_job import BatchJobConfig, run_batch_job
from melody_jax.sampling.prompt_file import read_prompt_file
from melody_jax.training import remote_checkpoints
from melody_jax.training.loop import train

BUCKET = "tests"
TESTS = Path(__file__).parents[1]
SERVERS = {"s3": "moto", "gs": "gcp_storage_emulator"}
"""Scheme -> package of a server."""
CLIENTS = {"s3": "s3fs", "gs": "gcsfs"}


def missing_package(scheme: str) -> str:
    """The package without which there is no server or no client; empty if both are installed."""
    packages = (SERVERS[scheme], CLIENTS[scheme])
    return next((package for package in packages if importlib.util.find_spec(package) is None), "")


@contextlib.contextmanager
def serving(scheme: str) -> Iterator[dict[str, str]]:
    """Serves a store with the bucket `BUCKET`; yields the environment that points its clients there."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    url = f"http://localhost:{port}"
    arguments = {
        "s3": ["-c", "import sys; from moto.server import main; main(['-p', sys.argv[1]])", str(port)],
        "gs": ["-m", "helpers.gcs_server", str(port), BUCKET],
    }
    server = subprocess.Popen(
        [sys.executable, *arguments[scheme]], cwd=TESTS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: _answers(port) or server.poll() is not None)
        assert server.poll() is None, "the server has ended"
        if scheme == "s3":
            yield {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "tests",
                "AWS_SECRET_ACCESS_KEY": "tests",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        else:
            yield {
                "STORAGE_EMULATOR_HOST": url,
                "TENSORSTORE_GCS_HTTP_URL": url,
                "GOOGLE_CLOUD_PROJECT": "tests",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google for the kind of the bucket
            }
    finally:
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("localhost", port)) == 0


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits at most a minute."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError


def write_data(folder: Path) -> None:
    """Two shards of eight recordings of noise each."""
    rng = np.random.default_rng(0)
    shards = []
    for i in range(2):
        recordings = [
            {
                "audio": np.frombuffer(
                    audio.encode_flac(rng.uniform(-0.5, 0.5, 500).astype(np.float32)), np.uint8
                ),
                "meta": records.encode_json({"id": f"{i}-{j}"}),
            }
            for j in range(8)
        ]
        shards.append(records.write_shard(folder / records.shard_name("audio", i, 2), recordings))
    content = records.ShardManifest(
        kind="audio", settings={}, versions={}, shard_count=2, shards=tuple(shards)
    )
    records.write_manifest(folder, content)


class Batches(TrainingBatches):
    """Crops of the recordings as batches of the toy stage; before batch 12, it may wait and be killed."""

    def __init__(self, folder: str, kill: Callable[[], None]) -> None:
        super().__init__(DataConfig(folder=(folder,), batch_size=8, crop_samples=16), "audio")
        self._kill = kill

    def __next__(self) -> dict[str, np.ndarray]:
        if self.get_state()["next_index"] == 12:
            self._kill()
        crops = super().__next__()["audio"]
        return {"x": crops[:, :8], "y": crops[:, 8:]}


def train_toy(folder: str, workdir: str, kill: bool = False) -> str:
    """Trains for 20 steps with a checkpoint every 5; returns a digest of the state."""

    def end() -> None:
        if kill:
            steps = RemoteFolder(workdir) / "checkpoints"
            wait_until(lambda: 5 in remote_checkpoints.complete_steps(steps))
            os.kill(os.getpid(), signal.SIGKILL)

    config = toy_config(workdir, steps=20, save_every=5, eval_every=0, keep_last=2)
    state: Any = train(config, Batches(folder, end), [], quiet=True)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


class KilledSystem(FakeSystem):
    """Is killed before the fourth batch, once the bucket has a clip and a manifest."""

    def __init__(self, out: str) -> None:
        super().__init__()
        self._remote = RemoteFolder(out)
        self._batches = 0

    def run(self, *args: Any, **kwargs: Any) -> list[np.ndarray]:
        self._batches += 1
        if self._batches == 4:
            wait_until(lambda: {"manifest.jsonl", "000000.wav"} <= set(self._remote.sizes()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(*args, **kwargs)


def sample(prompts: str, out: str, kill: bool = False) -> int:
    """Makes the missing clips in batches of two with a system without networks; returns their number."""
    job = BatchJobConfig(prompts=Path(prompts), out=Path(out), batch=2)
    system = KilledSystem(out) if kill else FakeSystem()
    return run_batch_job(system, job, read_prompt_file(job.prompts, {"seconds": 1.0}))


if __name__ == "__main__":
    mirror.SWEEP_SECONDS = 0.1
    program: Any = {"train": train_toy, "sample": sample}[sys.argv[1]]
    program(sys.argv[2], sys.argv[3], kill=True)
