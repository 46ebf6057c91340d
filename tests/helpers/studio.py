"""The studio's server with a system without networks, in the process of the test."""

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from fastapi import FastAPI
from starlette.testclient import TestClient

from helpers.fake_system import RATE, FakeSystem
from melody_jax.studio.api_common import Studio
from melody_jax.studio.client_limits import ClientLimits
from melody_jax.studio.job import QueueLimits
from melody_jax.studio.jobs import JobQueue
from melody_jax.studio.project import open_project
from melody_jax.studio.security import Policy
from melody_jax.studio.server import make_app
from melody_jax.studio.takes import Release
from melody_jax.studio.uploads import UploadDecoder
from melody_jax.studio.votes import VoteFile

ORIGIN = "http://localhost:7860"
PLENTY = Policy(clients=ClientLimits(changes_per_minute=1e6, uploads_per_minute=1e6, requests_per_second=1e6))
"""Limits that tests do not reach."""
PATIENCE = 60.0
"""Seconds after which a test gives up waiting."""


class Server:
    """A running studio."""

    def __init__(self, queue: JobQueue, client: TestClient) -> None:
        self.queue = queue
        self.client = client

    def make_take(self, prompt: str = "bossa nova", **settings: Any) -> str:
        """Submits a job, waits for it and returns the id of its take."""
        answer = self.client.post("/api/jobs", json={"prompt": prompt, "seconds": 2, "seed": 1} | settings)
        assert answer.status_code == 202, answer.text
        status = self.queue.wait(answer.json()["jobs"][0]["id"], PATIENCE)
        assert status.take_id, status
        return status.take_id


@contextlib.contextmanager
def serve(
    folder: Path,
    gate: threading.Semaphore | None = None,
    policy: Policy | None = None,
    limits: QueueLimits | None = None,
    add_page: Callable[[FastAPI, JobQueue], FastAPI] | None = None,
) -> Iterator[Server]:
    """A studio of a project in `folder`; `gate` holds up its system."""
    with (
        open_project(folder) as project,
        JobQueue(FakeSystem(gate), Release(name="fake"), project, limits) as queue,
    ):
        studio = Studio(
            queue=queue,
            decoder=UploadDecoder(queue.system.audio_format, project.uploads_folder),
            votes=VoteFile(project.votes_path),
        )
        try:
            with TestClient(make_app(studio, policy or Policy(), add_page), base_url=ORIGIN) as client:
                yield Server(queue, client)
        finally:
            if gate is not None:
                gate.release(1000)


def noise(seconds: float = 2.0, file_format: str = "WAV") -> bytes:
    """A file of noise."""
    buffer = io.BytesIO()
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * RATE))
    soundfile.write(buffer, wave, RATE, format=file_format)
    return buffer.getvalue()


def error(answer: Any) -> str:
    """The one line of an error."""
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].strip()
    assert "\n" not in body["error"]
    return body["error"]


def submit(server: Server, **body: Any) -> Any:
    return server.client.post("/api/jobs", json={"prompt": "bossa nova", "seconds": 2} | body)
