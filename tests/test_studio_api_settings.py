"""The studio's HTTP API: the settings of a job, what is refused and why, and their schema."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
from helpers.studio import PATIENCE, PLENTY, Server, error, serve

from melody_jax.sampling.request import Request
from melody_jax.studio.api_requests import SETTINGS, body_schema

UNKNOWN = "0" * 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A studio that all tests of this file share."""
    with serve(tmp_path_factory.mktemp("studio") / "project", policy=PLENTY) as running:
        yield running


@pytest.fixture(scope="module")
def take(server: Server) -> str:
    return server.make_take("bossa nova", seed=3)


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
