"""A studio with its page on a port of this machine, and a browser that visits it."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn

from helpers.fake_system import FakeSystem
from melody_jax.studio.api_common import Studio
from melody_jax.studio.jobs import JobQueue
from melody_jax.studio.page import mount_page
from melody_jax.studio.project import open_project
from melody_jax.studio.security import Policy
from melody_jax.studio.server import make_app
from melody_jax.studio.takes import Release
from melody_jax.studio.uploads import UploadDecoder
from melody_jax.studio.votes import VoteFile

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60.0
"""Seconds after which a test gives up waiting."""
COMMAND = "from melody_jax.cli import main; main()"
FAKE_MICROPHONE = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")


@dataclass
class Visit:
    """A page that is open, what it has asked for, and what it has complained of."""

    page: Any
    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """A headless Chromium; the test is skipped without one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    path = next((found_path for name in NAMES if (found_path := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine, apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", *FAKE_MICROPHONE])
        yield browser
        browser.close()


@contextlib.contextmanager
def visit(browser: Any, url: str, **options: Any) -> Iterator[Visit]:
    """The page of a studio in a new profile, as soon as it can be used; options are those of the profile."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    context.set_default_timeout(1000 * PATIENCE)
    visited = Visit(context.new_page())
    page = visited.page
    page.on("request", lambda request: visited.hosts.add(urlsplit(request.url).netloc))
    page.on("pageerror", lambda error: visited.complaints.append(str(error)))
    page.on("console", lambda message: _note(visited, message))
    page.goto(url)
    page.locator("#takes-header").wait_for()
    page.locator("#make-four").wait_for()
    yield visited
    context.close()


def _note(visited: Visit, message: Any) -> None:
    if message.type == "error":
        visited.complaints.append(message.text)


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


@contextlib.contextmanager
def serve_page(folder: Path, gate: threading.Semaphore | None = None) -> Iterator[tuple[str, JobQueue]]:
    """A studio with a system without networks, which `gate` holds up: its address and its queue."""
    with (
        open_project(folder) as project,
        JobQueue(FakeSystem(gate), Release(name="fake"), project) as queue,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        decoder = UploadDecoder(queue.system.audio_format, project.uploads_folder)
        studio = Studio(queue=queue, decoder=decoder, votes=VoteFile(project.votes_path))
        config = uvicorn.Config(make_app(studio, Policy(), mount_page), log_level="error", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", queue
        finally:
            if gate is not None:
                gate.release(10_000)
            server.should_exit = True
            server.force_exit = True
            thread.join()


@contextlib.contextmanager
def run_studio(releases: Path, project: Path, model: str = "tiny", system: str = "melody") -> Iterator[str]:
    """`melody studio` with a release in a process of its own: its address."""
    command = [sys.executable, "-c", COMMAND, "studio", "--folder", str(releases)]
    command += ["--model", model, "--system", system]
    command += ["--project", str(project), "--port", "0", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        address = next((match[0] for line in lines if (match := re.match(r"http://\S+", line))), None)
        assert address is not None, "melody studio ended before it said its address"
        wait_until(lambda: _answers(address))
        yield address
    finally:
        process.terminate()
        process.communicate()


def _answers(address: str) -> bool:
    """Whether the studio answers, not only listens."""
    host, _, port = urlsplit(address).netloc.partition(":")
    request = f"GET /healthz HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, int(port)), timeout=PATIENCE) as connection,
    ):
        connection.sendall(request)
        return bool(connection.recv(1))
    return False


def wait_until(condition: Any, seconds: float = PATIENCE) -> None:
    """Waits for a condition; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)
