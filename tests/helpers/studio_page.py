"""A studio with its page on a port of this machine, and a browser that visits it."""

import contextlib
import io
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
from urllib.parse import urljoin, urlsplit

import numpy as np
import pytest
import soundfile
import uvicorn

from helpers.fake_system import FakeSystem
from melody_jax.studio.api_common import Studio
from melody_jax.studio.job import JobState
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
TABS = ("Make", "Your sound", "Story", "Compare")
SEVERE = ("serious", "critical")
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
def serve_page(
    folder: Path, gate: threading.Semaphore | None = None, port: int = 0
) -> Iterator[tuple[str, JobQueue]]:
    """A studio with a system without networks, which `gate` holds up: its address and its queue."""
    with (
        open_project(folder) as project,
        JobQueue(FakeSystem(gate), Release(name="fake"), project) as queue,
        socket.create_server(("127.0.0.1", port)) as listener,
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


class GatedStudio:
    """A studio whose system makes a window for each `gate.release`."""

    def __init__(self, url: str, queue: JobQueue, gate: threading.Semaphore) -> None:
        self.url = url
        self.queue = queue
        self.gate = gate

    def finish(self) -> None:
        """Lets all jobs end, and takes back what they did not need."""
        self.gate.release(1000)
        wait_until(lambda: not self.unfinished())
        while self.gate.acquire(blocking=False):
            pass

    def unfinished(self) -> list[Any]:
        """The jobs that have not ended, oldest first."""
        return [job for job in self.queue.jobs() if not job.state.is_final]

    def votes(self) -> list[str]:
        """The lines of the file of votes."""
        path = self.queue.project.votes_path
        return path.read_text().splitlines() if path.exists() else []

    def clear(self) -> None:
        """Deletes all takes."""
        for take in self.queue.project.takes():
            self.queue.project.delete(take.id)


@contextlib.contextmanager
def serve_gated(folder: Path, port: int = 0) -> Iterator[GatedStudio]:
    """A studio whose system makes nothing until the test lets it."""
    gate = threading.Semaphore(0)
    with serve_page(folder, gate, port) as (url, queue):
        yield GatedStudio(url, queue, gate)


def set_length(page: Any, seconds: float) -> None:
    box = page.get_by_label("number input for Length, seconds").first
    box.fill(str(seconds))
    box.press("Tab")


def make(page: Any, prompt: str, button: str = "Make one take") -> None:
    page.locator("#prompt textarea").fill(prompt)
    page.get_by_role("button", name=button).click()
    page.locator(".job").first.wait_for()


def running(queue: JobQueue) -> list[Any]:
    return [job for job in queue.jobs() if job.state == JobState.RUNNING]


def take_of(page: Any, url: str, take_id: str) -> dict[str, Any]:
    return page.request.get(f"{url}/api/takes/{take_id}").json()


def sound_of(page: Any, url: str, take_id: str) -> np.ndarray:
    """The samples of a take, 16-bit integers."""
    body = page.request.get(f"{url}/api/takes/{take_id}/sound.flac").body()
    return soundfile.read(io.BytesIO(body), dtype="int16")[0]


def card(page: Any, take_id: str) -> Any:
    return page.locator(f'[data-take="{take_id}"]')


def new_take(page: Any, action: Any) -> str:
    """The id of the take that an action makes."""
    before = take_ids(page)
    action()
    page.locator(".job").first.wait_for()
    page.locator(".job").first.wait_for(state="detached")
    (take_id,) = take_ids(page) - before
    card(page, take_id).wait_for()
    return take_id


def take_ids(page: Any) -> set[str]:
    """Those of the project: the page may not show them yet."""
    return {take["id"] for take in page.request.get(urljoin(page.url, "/api/takes?limit=50")).json()["takes"]}


def violations(page: Any) -> list[str]:
    """What axe-core finds serious or critical, with the elements."""
    axe_core = pytest.importorskip(
        "axe_core_python.sync_playwright", reason="axe-core-python is not installed"
    )
    page.evaluate("document.getAnimations().forEach((animation) => animation.finish())")
    results = axe_core.Axe().run(page)
    return [
        f"{entry['id']}: {node['html']}"
        for entry in results["violations"]
        if entry["impact"] in SEVERE
        for node in entry["nodes"]
    ]


def press_until(page: Any, key: str, selector: str, most: int = 60) -> None:
    """Presses a key until the focus is on an element."""
    for _ in range(most):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{key} does not lead to {selector}")
