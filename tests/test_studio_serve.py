"""The studio's process: a signal ends it with its jobs cancelled, its streams ended and its history intact."""

import http.client
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
from melody_jax.studio.project import open_project

TESTS = Path(__file__).parent
PATIENCE = 120.0
"""Seconds after which a test gives up waiting."""
SERVER = """
import sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers.fake_system import FakeSystem
from melody_jax.studio import command, serve
from melody_jax.studio.project import open_project
from melody_jax.studio.takes import Release

config = command.StudioConfig()
gate = threading.Semaphore(0)

def open_gate():
    while True:
        gate.release()
        time.sleep(0.02)

threading.Thread(target=open_gate, daemon=True).start()
listener = command.listen("127.0.0.1", 0)
with open_project(Path(sys.argv[2])) as project:
    serve.serve(system=FakeSystem(gate), release=Release(name="fake"), project=project,
        policy=command.make_policy(config), queue_limits=config.queue, upload_limits=config.uploads, limits={},
        listener=listener, announcement=str(listener.getsockname()[1]))
print("ended", flush=True)
"""


def request(port: int, method: str, path: str, value: Any = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    body = None if value is None else json.dumps(value)
    connection.request(method, path, body, {"Content-Type": "application/json", "Connection": "close"})
    return connection.getresponse()


def submit(port: int, seconds: float) -> str:
    answer = json.loads(
        request(port, "POST", "/api/jobs", {"prompt": "bossa nova", "seconds": seconds}).read()
    )
    return answer["jobs"][0]["id"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(tmp_path: Path, number: signal.Signals) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(TESTS), str(tmp_path / "project")],
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        short = submit(port, 1)
        long = submit(port, 600)
        events = request(port, "GET", f"/api/jobs/{long}/events")
        deadline = time.monotonic() + PATIENCE
        while json.loads(request(port, "GET", f"/api/jobs/{short}").read())["state"] != "done":
            assert time.monotonic() < deadline
        assert b"melody studio" in request(port, "GET", "/").read()
        server.send_signal(number)
        last = events.read().decode().strip().rpartition("data: ")[2]
        output, errors = server.communicate(timeout=PATIENCE)
    finally:
        server.kill()
    assert json.loads(last)["state"] == "cancelled"
    assert (server.returncode, output.splitlines()[-1], errors) == (0, "ended", "")
    with open_project(tmp_path / "project") as project:
        assert [take.seconds for take in project.takes()] == [1.0]
