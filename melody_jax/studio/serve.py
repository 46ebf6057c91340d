"""Runs the server of the studio with uvicorn until a signal ends it."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import webbrowser
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from melody_jax.sampling.request import Request
from melody_jax.sampling.system import System
from melody_jax.studio.api_common import Studio
from melody_jax.studio.features import usual_prompt
from melody_jax.studio.job import QueueLimits
from melody_jax.studio.jobs import JobQueue
from melody_jax.studio.making import default_warm_ups
from melody_jax.studio.project import Project
from melody_jax.studio.security import Policy
from melody_jax.studio.server import make_app
from melody_jax.studio.takes import Release
from melody_jax.studio.uploads import UploadDecoder, UploadLimits
from melody_jax.studio.votes import VoteFile

END_SECONDS = 2.0
"""Seconds that open answers have to end after a signal."""
MAX_CONNECTIONS = 1024
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Settings of gradio: it calls nobody."""


def serve(
    *,
    system: System,
    release: Release,
    project: Project,
    policy: Policy,
    queue_limits: QueueLimits,
    upload_limits: UploadLimits,
    limits: dict[str, Any],
    listener: socket.socket,
    announcement: str,
    browser_address: str = "",
) -> None:
    """Serves a project until SIGINT or SIGTERM.

    limits: what /api/info says of the limits. announcement: is printed once the page answers. browser_address: what the
    browser of this machine opens then; empty: nothing.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ["GRADIO_TEMP_DIR"] = str(project.uploads_folder)  # it makes a folder there
    first = Request(prompt=usual_prompt(system))  # what the page asks for at first
    warm_ups = [*default_warm_ups(system, first), first]  # again: the speed is measured without compiling
    with JobQueue(system, release, project, queue_limits, warm_ups) as queue:
        from melody_jax.studio.page import mount_page  # gradio takes seconds, in which the queue warms up

        studio = Studio(
            queue=queue,
            decoder=UploadDecoder(system.audio_format, project.uploads_folder, upload_limits),
            votes=VoteFile(project.votes_path),
            limits=limits,
        )
        server = StudioServer(make_app(studio, policy, mount_page), queue, announcement, browser_address)
        server.run(sockets=[listener])


class StudioServer(uvicorn.Server):
    """A server that ends the jobs before it waits for its open answers."""

    def __init__(self, app: FastAPI, queue: JobQueue, announcement: str, browser_address: str = "") -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="on",
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=round(2 * END_SECONDS),
            )
        )
        self.queue = queue
        self.announcement = announcement
        self.browser_address = browser_address
        self._states_speed = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends the server; a second Ctrl-C does not wait for open answers."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, then says so and opens the browser."""
        await super().startup(sockets)
        self._say(self.announcement)
        if self.browser_address:
            threading.Thread(target=webbrowser.open, args=(self.browser_address,), daemon=True).start()

    async def on_tick(self, counter: int) -> bool:
        """Prints the measured speed once it is known."""
        if self._states_speed:
            stats = self.queue.stats()
            if stats.warm and stats.real_time_factor is not None:
                self._states_speed = False
                self._say(f"warm: {stats.real_time_factor:.2f} s of music per second of work")
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cancels the jobs, so that their streams end, then the answers that do not end by themselves."""
        await asyncio.to_thread(self.queue.close, 0.0)
        asyncio.get_running_loop().call_later(END_SECONDS, self._cancel_answers)
        await super().shutdown(sockets)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be closed; the page goes on
            print(text, flush=True)

    def _cancel_answers(self) -> None:
        for task in self.server_state.tasks:
            task.cancel()
