"""The studio's HTTP API: jobs, their events and sound, takes, uploads, votes, the export, and errors of one line."""

import io
import json
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("fastapi")
from helpers.fake_system import RATE
from helpers.studio import PATIENCE, Server, noise, serve
from prometheus_client.parser import text_string_to_metric_families

from melody_jax.sampling.request import Request
from melody_jax.studio.api_requests import SETTINGS, body_schema
from melody_jax.studio.client_limits import ClientLimits
from melody_jax.studio.job import QueueLimits
from melody_jax.studio.security import Policy

PLENTY = Policy(clients=ClientLimits(changes_per_minute=1e6, uploads_per_minute=1e6, requests_per_second=1e6))
UNKNOWN = "0" * 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A studio that all tests of this file share."""
    with serve(tmp_path_factory.mktemp("studio") / "project", policy=PLENTY) as running:
        yield running


@pytest.fixture(scope="module")
def take(server: Server) -> str:
    return server.make_take("bossa nova", seed=3)


@pytest.fixture
def gate() -> threading.Semaphore:
    return threading.Semaphore(0)


@pytest.fixture
def held(tmp_path: Path, gate: threading.Semaphore) -> Iterator[Server]:
    """A studio whose system waits for the gate at every window; two jobs may wait."""
    limits = QueueLimits(queued=4, queued_per_client=3)
    with serve(tmp_path / "project", gate, PLENTY, limits) as running:
        yield running


def error(answer: Any) -> str:
    """The one line of an error."""
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].strip()
    assert "\n" not in body["error"]
    return body["error"]


def submit(server: Server, **body: Any) -> Any:
    return server.client.post("/api/jobs", json={"prompt": "bossa nova", "seconds": 2} | body)


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


class TestSettings:
    @pytest.mark.parametrize(
        ("body", "hint"),
        [
            ({"promt": "a"}, "'prompt'"),
            ({"guidance": 2}, "'guidance_scale'"),
            ({"duration": 2}, "'seconds'"),
            ({"counts": 2}, "'count'"),
            ({"xyzzy": 2}, "the settings are"),
            ({"prompt": "a", "count": 5}, "1 to 4"),
            ({"prompt": "a", "count": True}, "1 to 4"),
            ({"prompt": "a", "seconds": 1e9}, "600"),
            ({"prompt": "a", "seconds": [1]}, "single value"),
            ({"prompt": "a", "seed": "x"}, "whole number"),
            ({"prompt": "a", "seed": 2**64}, "seed"),
            ({"prompt": "a", "bpm": 120}, "no tempo"),
            ({"prompt": "a", "source": "/etc/passwd"}, "ID"),
            ({"prompt": "a", "source": {"file": "x.wav"}}, "ID"),
            ({"prompt": "a", "source": {"take": 5}}, "ID"),
            ({"prompt": [{"audio": "../a.wav"}]}, "ID"),
            ({"prompt": "a", "story": [{"at": 1, "prompt": [{"audio": "a.wav"}]}]}, "ID"),
            ({"prompt": "a", "story": 5}, "story"),
            ({"prompt": "a", "regions": [[0, 1]]}, "source"),
            ({"prompt": "a", "title": 5}, "title"),
            ({"prompt": "a", "parent": 5}, "parent"),
            ([], "object"),
            ("a", "object"),
        ],
    )
    def test_a_bad_body_is_422(self, server: Server, body: Any, hint: str):
        answer = server.client.post("/api/jobs", json=body)
        assert answer.status_code == 422
        assert hint in error(answer)

    @pytest.mark.parametrize(
        "body",
        [
            {"prompt": "a", "source": {"take": UNKNOWN}},
            {"prompt": "a", "source": {"upload": "../takes/a.flac"}},
            {"prompt": "a", "source": {"upload": "0" * 64 + ".flac"}},
            {"from_take": UNKNOWN},
            {"prompt": "a", "parent": UNKNOWN},
            {"prompt": "a", "parent": "../lock"},
        ],
    )
    def test_what_there_is_not_is_404(self, server: Server, body: Any):
        answer = server.client.post("/api/jobs", json=body)
        assert answer.status_code == 404
        error(answer)

    @pytest.mark.parametrize("body", [b"{", b"\xff", b"", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"])
    def test_what_is_not_json_is_422(self, server: Server, body: bytes):
        answer = server.client.post("/api/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422
        error(answer)

    def test_another_content_type_is_415(self, server: Server):
        answer = server.client.post("/api/jobs", content=b"{}", headers={"content-type": "text/plain"})
        assert answer.status_code == 415
        error(answer)

    def test_a_variation_of_a_take(self, server: Server, take: str):
        made = server.make_take("", source={"take": take}, strength=0.5, seconds=Request.seconds)
        body = server.client.get(f"/api/takes/{made}").json()
        assert (body["kind"], body["parent"]) == ("variation", take)

    def test_changes_to_a_take(self, server: Server, take: str):
        body = {"from_take": take, "seed": str(2**60 + 1), "source": {"take": take}, "strength": 0.25}
        job = server.client.post("/api/jobs", json=body).json()["jobs"][0]
        changed = server.client.get(f"/api/takes/{server.queue.wait(job['id'], PATIENCE).take_id}").json()
        assert changed["settings"]["prompt"] == "bossa nova"
        assert changed["settings"]["strength"] == 0.25
        assert changed["seed"] == str(2**60 + 1)
        assert changed["parent"] == take

    def test_a_null_change_is_the_default(self, server: Server, take: str):
        longer = server.make_take("drums", seconds=3, negative_prompt="noise")
        body = {"from_take": longer, "seconds": None, "negative_prompt": None}
        job = server.client.post("/api/jobs", json=body).json()["jobs"][0]
        changed = server.client.get(f"/api/takes/{server.queue.wait(job['id'], PATIENCE).take_id}").json()
        assert changed["settings"]["seconds"] == Request.seconds
        assert changed["settings"]["negative_prompt"] == ""
        assert changed["settings"]["seed"] == 1

    def test_a_blend_with_the_sound_of_a_take(self, server: Server, take: str):
        made = server.make_take([{"text": "piano"}, {"audio": {"take": take}, "weight": 0.5}])
        parts = server.client.get(f"/api/takes/{made}").json()["settings"]["prompt"]
        sha256 = server.queue.project.take(take).sha256
        assert parts[1]["audio"] == {"file": f"{sha256}.flac", "sha256": sha256}

    def test_the_schema_has_every_setting(self):
        properties = body_schema()["properties"]
        assert properties.keys() >= set(SETTINGS)
        assert properties["strength"]["maximum"] == 1
        assert all(properties[name]["description"] for name in SETTINGS)


class TestTakes:
    def test_pages_hold_all_takes(self, server: Server):
        made = [server.make_take() for _ in range(3)]
        ids = []
        query = "?limit=2"
        while query:
            page = server.client.get(f"/api/takes{query}").json()
            ids += [entry["id"] for entry in page["takes"]]
            query = page["next"] and f"?limit=2&before={page['next']!r}"
        assert ids == [entry.id for entry in reversed(server.queue.project.takes())]
        assert set(made) <= set(ids)

    @pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=a", "before=a", "favourites=maybe"])
    def test_a_bad_page_is_422(self, server: Server, query: str):
        answer = server.client.get(f"/api/takes?{query}")
        assert answer.status_code == 422
        assert query.partition("=")[0] in error(answer)

    def test_a_favourite_with_a_title(self, server: Server):
        made = server.make_take()
        answer = server.client.patch(f"/api/takes/{made}", json={"favourite": True, "title": "mine\n<b>"})
        assert answer.json()["favourite"] is True
        assert answer.json()["title"] == "mine <b>"
        favourites = server.client.get("/api/takes?favourites=true").json()["takes"]
        assert [entry["id"] for entry in favourites] == [made]

    @pytest.mark.parametrize("body", [{}, {"favourite": 1}, {"title": None}, {"seed": 5}, []])
    def test_a_bad_change_is_422(self, server: Server, take: str, body: Any):
        answer = server.client.patch(f"/api/takes/{take}", json=body)
        assert answer.status_code == 422
        error(answer)

    def test_a_deleted_take_is_gone(self, server: Server):
        made = server.make_take()
        assert server.client.delete(f"/api/takes/{made}").status_code == 204
        for place in ("", "/sound.flac", "/sound.ogg", "/spectrogram.png"):
            assert server.client.get(f"/api/takes/{made}{place}").status_code == 404

    def test_the_stored_file_and_its_ranges(self, server: Server, take: str):
        stored = server.queue.project.path(take).read_bytes()
        url = f"/api/takes/{take}/sound.flac"
        answer = server.client.get(url)
        assert answer.content == stored
        assert answer.headers["content-type"] == "audio/flac"
        part = server.client.get(url, headers={"range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, stored[10:20])

    @pytest.mark.parametrize("suffix", ["wav", "ogg", "mp3"])
    def test_other_formats_and_their_ranges(self, server: Server, take: str, suffix: str):
        url = f"/api/takes/{take}/sound.{suffix}"
        data = server.client.get(url).content
        samples, rate = soundfile.read(io.BytesIO(data))
        assert rate == RATE
        assert len(samples) >= 2 * RATE
        for header, expected in (
            ("bytes=0-9", data[:10]),
            ("bytes=-5", data[-5:]),
            (f"bytes={len(data) - 3}-", data[-3:]),
        ):
            part = server.client.get(url, headers={"range": header})
            assert (part.status_code, part.content) == (206, expected)
        outside = server.client.get(url, headers={"range": f"bytes={len(data)}-"})
        assert outside.status_code == 416
        assert outside.headers["content-range"] == f"bytes */{len(data)}"

    def test_a_download_has_a_safe_name_and_tags(self, server: Server):
        made = server.make_take(title='../../"Überfall"; rm -rf /')
        answer = server.client.get(f"/api/takes/{made}/sound.flac?download=true")
        assert answer.headers["content-disposition"] == f'attachment; filename="uberfall-rm-rf-{made}.flac"'
        with soundfile.SoundFile(io.BytesIO(answer.content)) as sound:
            assert sound.title == '../../"Überfall"; rm -rf /'
            assert "seed 1" in sound.comment

    def test_an_unknown_format_is_404(self, server: Server, take: str):
        answer = server.client.get(f"/api/takes/{take}/sound.exe")
        assert answer.status_code == 404
        assert ".flac" in error(answer)

    def test_a_spectrogram_is_a_picture_of_its_size(self, server: Server, take: str):
        answer = server.client.get(f"/api/takes/{take}/spectrogram.png?width=320&height=200")
        assert answer.content[:8] == b"\x89PNG\r\n\x1a\n"
        assert [int.from_bytes(answer.content[i : i + 4]) for i in (16, 20)] == [320, 200]
        assert server.client.get(f"/api/takes/{take}/spectrogram.png?width=9999").status_code == 422

    def test_a_vote(self, server: Server, take: str):
        other = server.make_take("drums")
        answer = server.client.post("/api/votes", json={"a": take, "b": other, "choice": "b"})
        assert answer.status_code == 201
        lines = server.queue.project.votes_path.read_text().splitlines()
        assert json.loads(lines[-1])["choice"] == "b"
        for body, status in (
            ({"a": take, "b": other, "choice": "c"}, 422),
            ({"a": take, "b": UNKNOWN, "choice": "a"}, 404),
            ({"a": take, "b": other}, 422),
        ):
            answer = server.client.post("/api/votes", json=body)
            assert answer.status_code == status
            error(answer)
        assert server.queue.project.votes_path.read_text().splitlines() == lines

    def test_the_export_has_the_clips(self, server: Server, take: str):
        answer = server.client.get(f"/api/export.zip?takes={take}")
        assert answer.headers["content-type"] == "application/zip"
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.read(f"clips/{take}.flac") == server.queue.project.path(take).read_bytes()
            assert json.loads(archive.read("manifest.jsonl"))["id"] == take
        assert server.client.get(f"/api/export.zip?takes={UNKNOWN}").status_code == 404
        whole = server.client.get("/api/export.zip").content
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            assert len(archive.namelist()) > len(server.queue.project)


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

    def test_metrics(self, server: Server, take: str):
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
