"""The studio's HTTP API: jobs, their events and sound, uploads, the state of the server, and errors of one line."""

import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("fastapi")
from helpers.fake_system import RATE
from helpers.studio import PATIENCE, PLENTY, Server, error, noise, serve, submit
from prometheus_client.parser import text_string_to_metric_families

from melody_jax.studio.job import QueueLimits

UNKNOWN = "0" * 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A studio that all tests of this file share."""
    with serve(tmp_path_factory.mktemp("studio") / "project", policy=PLENTY) as running:
        yield running


@pytest.fixture
def gate() -> threading.Semaphore:
    return threading.Semaphore(0)


@pytest.fixture
def held(tmp_path: Path, gate: threading.Semaphore) -> Iterator[Server]:
    """A studio whose system waits for the gate at every window; two jobs may wait."""
    limits = QueueLimits(queued=4, queued_per_client=3)
    with serve(tmp_path / "project", gate, PLENTY, limits) as running:
        yield running


class TestJobs:
    def test_four_takes_have_consecutive_seeds(self, server: Server):
        answer = submit(server, count=4, seed=2**63, title="four")
        assert answer.status_code == 202
        takes = [server.queue.wait(job["id"], PATIENCE).take_id for job in answer.json()["jobs"]]
        bodies = [server.client.get(f"/api/takes/{take_id}").json() for take_id in takes]
        assert [body["settings"]["seed"] for body in bodies] == [2**63 + i for i in range(4)]
        assert bodies[1]["seed"] == str(2**63 + 1)
        assert {body["title"] for body in bodies} == {"four"}

    def test_a_job_is_in_the_list_of_its_client(self, server: Server):
        job = submit(server).json()["jobs"][0]
        assert job["id"] in [entry["id"] for entry in server.client.get("/api/jobs").json()["jobs"]]
        assert server.client.get(f"/api/jobs/{job['id']}").json()["title"] == "bossa nova"

    def test_without_a_seed_one_is_drawn(self, server: Server):
        seeds = {
            server.client.get(f"/api/takes/{server.make_take(seed=None)}").json()["seed"] for _ in range(3)
        }
        assert len(seeds) == 3

    def test_a_full_queue_says_when_to_come_back(self, held: Server):
        assert submit(held).status_code == 202
        while held.queue.stats().queued:
            time.sleep(0.01)
        assert submit(held, count=3).status_code == 202
        answer = submit(held)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert "3" in error(answer)
        assert submit(held, count=4).status_code == 429
        assert held.queue.stats().queued == 3

    def test_a_waiting_job_is_cancelled(self, held: Server):
        first = submit(held).json()["jobs"][0]
        second = submit(held).json()["jobs"][0]
        assert held.client.delete(f"/api/jobs/{second['id']}").json()["state"] == "cancelled"
        assert held.client.get(f"/api/jobs/{second['id']}/sound").status_code == 410
        assert held.client.get(f"/api/jobs/{first['id']}").json()["state"] in ("queued", "running")

    def test_sound_comes_before_the_job_ends(self, held: Server, gate: threading.Semaphore):
        job = submit(held, seconds=3, seed=5).json()["jobs"][0]["id"]
        gate.release(1)
        data = b""
        states = []

        def listen() -> None:
            nonlocal data
            with held.client.stream("GET", f"/api/jobs/{job}/sound") as answer:
                data = b"".join(answer.iter_bytes())

        thread = threading.Thread(target=listen)
        thread.start()
        while held.queue.status(job).windows_done < 1:
            time.sleep(0.01)
        states.append(held.queue.status(job).state)
        gate.release(2)
        thread.join(PATIENCE)
        take_id = held.queue.wait(job, PATIENCE).take_id
        assert states == ["running"]
        streamed, rate = soundfile.read(io.BytesIO(data), dtype="int16")
        assert rate == RATE
        stored, _ = soundfile.read(held.queue.project.path(take_id), dtype="int16")
        np.testing.assert_array_equal(streamed, stored)

    def test_the_sound_of_a_finished_job_is_the_take(self, server: Server):
        answer = submit(server)
        job = answer.json()["jobs"][0]["id"]
        take_id = server.queue.wait(job, PATIENCE).take_id
        data = server.client.get(f"/api/jobs/{job}/sound").content
        stored, _ = soundfile.read(server.queue.project.path(take_id), dtype="int16")
        np.testing.assert_array_equal(soundfile.read(io.BytesIO(data), dtype="int16")[0], stored)

    def test_events_end_with_the_job(self, held: Server, gate: threading.Semaphore):
        job = submit(held, seconds=2).json()["jobs"][0]["id"]
        gate.release(2)
        with held.client.stream("GET", f"/api/jobs/{job}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in answer.iter_lines() if line]
        assert all(line.startswith("data: ") for line in lines)
        events = [json.loads(line.removeprefix("data: ")) for line in lines]
        assert events[-1]["state"] == "done"
        assert events[-1]["take_id"]
        assert [event["windows_done"] for event in events] == sorted(
            event["windows_done"] for event in events
        )

    @pytest.mark.parametrize("place", ["", "/events", "/sound"])
    def test_an_unknown_job_is_404(self, server: Server, place: str):
        answer = server.client.get(f"/api/jobs/{UNKNOWN}{place}")
        assert answer.status_code == 404
        error(answer)

    def test_a_failed_job_says_why(self, server: Server):
        job = submit(server, prompt="refuse").json()["jobs"][0]["id"]
        server.queue.wait(job, PATIENCE)
        assert server.client.get(f"/api/jobs/{job}").json()["error"] == "the prompt is refused"


class TestUploads:
    @pytest.mark.parametrize("kind", ["raw", "form"])
    def test_an_upload_is_a_source(self, server: Server, kind: str):
        if kind == "raw":
            answer = server.client.post(
                "/api/uploads", content=noise(), headers={"content-type": "audio/wav"}
            )
        else:
            answer = server.client.post("/api/uploads", files={"file": ("../../a.wav", noise(1.5))})
        assert answer.status_code == 201, answer.text
        body = answer.json()
        assert re.fullmatch(r"[0-9a-f]{64}\.flac", body["upload"])
        assert body["seconds"] == (2.0 if kind == "raw" else 1.5)
        made = server.make_take("", source={"upload": body["upload"]}, seconds=4)
        assert server.client.get(f"/api/takes/{made}").json()["kind"] == "continuation"
        sound = server.client.get(f"/api/uploads/{body['upload']}/sound.flac", headers={"range": "bytes=0-3"})
        assert sound.content == b"fLaC"
        picture = server.client.get(f"/api/uploads/{body['upload']}/spectrogram.png")
        assert picture.headers["content-type"] == "image/png"

    @pytest.mark.parametrize(
        ("content", "kind", "status"),
        [
            (b"RIFF" + bytes(100), "audio/wav", 422),
            (b"", "audio/wav", 422),
            (b"{}", "application/json", 415),
            (b"a=b", "application/x-www-form-urlencoded", 415),
            (b"--x\r\n", "multipart/form-data; boundary=x", 422),
            (b"", "multipart/form-data", 400),
        ],
    )
    def test_what_is_no_sound_is_refused(self, server: Server, content: bytes, kind: str, status: int):
        before = sorted(server.queue.project.folder.rglob("*"))
        answer = server.client.post("/api/uploads", content=content, headers={"content-type": kind})
        assert answer.status_code == status, answer.text
        assert str(server.queue.project.folder) not in error(answer)
        assert sorted(server.queue.project.folder.rglob("*")) == before

    def test_a_form_without_or_with_two_files_is_refused(self, server: Server):
        assert server.client.post("/api/uploads", files={"a": (None, "text")}).status_code == 422
        two = [("file", ("a.wav", noise())), ("file", ("b.wav", noise()))]
        assert server.client.post("/api/uploads", files=two).status_code == 400

    @pytest.mark.parametrize("name", ["..", "%2e%2e", "a.flac", "..%2ftakes%2fa.flac", "0" * 64 + ".flac"])
    def test_other_names_are_404(self, server: Server, name: str):
        assert server.client.get(f"/api/uploads/{name}/sound.flac").status_code == 404


class TestSystem:
    def test_info(self, server: Server):
        info = server.client.get("/api/info").json()
        assert info["release"] == "fake"
        assert info["sample_rate"] == RATE
        assert info["takes"] == len(server.queue.project)
        assert info["limits"]["queued"] == QueueLimits().queued
        assert info["memory_bytes"] > 0

    def test_health(self, server: Server):
        assert server.client.get("/healthz").json() == {"status": "ok"}

    def test_a_dead_worker_is_not_healthy(self, tmp_path: Path):
        with serve(tmp_path / "project") as running:
            running.queue.close(PATIENCE)
            assert running.client.get("/healthz").status_code == 503

    def test_metrics(self, server: Server):
        take = server.make_take()
        server.client.get(f"/api/takes/{take}")
        text = server.client.get("/metrics").text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        done = [s.value for s in families["melody_studio_jobs"].samples if s.labels == {"state": "done"}]
        assert done == [server.queue.stats().done]
        routes = {s.labels["route"] for s in families["melody_studio_http_requests"].samples}
        assert "/takes/{take_id}" in routes
        assert not any(take in route for route in routes)

    def test_two_servers_have_their_own_metrics(self, server: Server, tmp_path: Path):
        with serve(tmp_path / "project") as other:
            assert 'melody_studio_jobs_total{state="done"} 0.0' in other.client.get("/metrics").text

    def test_the_description_has_all_routes(self, server: Server):
        schema = server.client.get("/api/openapi.json").json()
        assert schema["servers"] == [{"url": "/api"}]
        assert {
            "/jobs",
            "/jobs/{job_id}/events",
            "/takes/{take_id}/sound.{suffix}",
            "/uploads",
            "/info",
        } <= schema["paths"].keys()

    def test_the_page_of_the_description_loads_nothing(self, server: Server):
        answer = server.client.get("/api/docs")
        assert "<script" not in answer.text
        assert not re.search(r"(src|href)=\"(https?:)?//", answer.text)
        assert "/api/jobs/{job_id}/events" in answer.text
        assert "negative_prompt" in answer.text

    @pytest.mark.parametrize("path", ["/api/nothing", "/api/jobs/a/b/c", "/nothing", "/api"])
    def test_what_there_is_not_is_404(self, server: Server, path: str):
        answer = server.client.get(path, follow_redirects=False)
        assert answer.status_code == 404
        error(answer)

    def test_another_method_is_405(self, server: Server):
        answer = server.client.put("/api/jobs")
        assert answer.status_code == 405
        error(answer)
