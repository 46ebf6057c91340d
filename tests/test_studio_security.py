"""What the studio lets in: hosts, origins, tokens, paths, sizes, rates."""

import asyncio
import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from helpers.studio import ORIGIN, Server, noise, serve
from starlette.testclient import TestClient

from melody_jax.errors import UserError
from melody_jax.studio import security
from melody_jax.studio.client_limits import MAX_CLIENTS, ClientLimits, OpenRequests, TokenBuckets, client_name
from melody_jax.studio.security import Policy, Security

TOKEN = "a-token-of-a-test"
WITH_TOKEN = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("studio") / "project") as running:
        yield running


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[TestClient]:
    """A studio behind a token."""
    with serve(tmp_path / "project", policy=Policy(token=TOKEN)) as running:
        running.client.follow_redirects = False
        yield running.client


def limited(tmp_path: Path, **limits: Any) -> Any:
    return serve(tmp_path / "project", policy=Policy(clients=ClientLimits(**limits)))


class TestHost:
    @pytest.mark.parametrize(
        "host", ["localhost:7860", "127.0.0.1:80", "[::1]:7860", "LOCALHOST", "localhost.", "127.0.0.1"]
    )
    def test_served_names(self, server: Server, host: str):
        assert server.client.get("/healthz", headers={"host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host", ["evil.example", "localhost.evil.example", "evil.example:7860", "192.168.0.7", "[::2]"]
    )
    def test_other_names_are_refused(self, server: Server, host: str):
        answer = server.client.get("/healthz", headers={"host": host})
        assert answer.status_code == 421
        assert answer.json()["error"].startswith("the studio is not served as")

    @pytest.mark.parametrize("host", ["", "localhost@evil.example", "localhost:7860:1", "localhost/", "a b"])
    def test_what_is_no_host_is_400(self, server: Server, host: str):
        assert server.client.get("/healthz", headers={"host": host}).status_code == 400

    def test_two_hosts_are_400(self, server: Server):
        headers = [("host", "localhost"), ("host", "evil.example")]
        assert server.client.get("/healthz", headers=headers).status_code == 400

    def test_the_address_that_was_connected_to_is_served(self):
        scope = {"server": ("192.168.0.7", 7860)}
        headers = {"host": ["192.168.0.7:7860"]}
        assert security.check_host(scope, headers, frozenset()) == "192.168.0.7:7860"


class TestOrigin:
    @pytest.mark.parametrize("origin", [ORIGIN, "https://localhost:7860", "HTTP://LOCALHOST:7860"])
    def test_its_own(self, server: Server, origin: str):
        answer = server.client.delete("/api/jobs/x", headers={"origin": origin})
        assert answer.status_code == 404

    @pytest.mark.parametrize(
        "origin", ["http://evil.example", "http://localhost:3000", "http://localhost", "null", "file://", ""]
    )
    @pytest.mark.parametrize(("method", "path"), [("POST", "/api/jobs"), ("GET", "/api/jobs/x/events")])
    def test_others_are_refused(self, server: Server, origin: str, method: str, path: str):
        answer = server.client.request(method, path, headers={"origin": origin})
        assert answer.status_code == 403

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    def test_what_a_page_of_another_site_embeds_is_refused(self, server: Server, site: str):
        headers = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
        assert server.client.get("/api/takes", headers=headers).status_code == 403
        assert (
            server.client.get("/api/info", headers=headers | {"sec-fetch-mode": "navigate"}).status_code
            == 200
        )

    def test_no_answer_is_for_another_origin(self, server: Server):
        answer = server.client.get("/api/info", headers={"origin": ORIGIN})
        assert not [name for name in answer.headers if name.startswith("access-control-")]


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        [
            "/gradio_api/file=/etc/passwd",
            "/gradio_api/file/etc/passwd",
            "/gradio_api/proxy=http://localhost:1",
            "/gradio_api/upload",
            "/gradio_api/queue/join",
            "/gradio_api/run/predict",
            "/gradio_api/call/predict",
            "/gradio_api/component_server",
            "/gradio_api/run-history/records",
            "/gradio_api/heartbeat/../upload",
            "/monitoring/summary",
            "/login",
            "/file=/etc/passwd",
            "//localhost/",
            "/assets/../config",
            "/static/..%2f",
            "/assets/a\n",
        ],
    )
    def test_what_reads_files_or_calls_is_closed(self, path: str):
        assert security.PAGE_PATHS.fullmatch(path) is None
        assert security.API_PATHS.fullmatch(path) is None

    @pytest.mark.parametrize("path", ["/", "/config", "/theme.css", "/assets/a/b-1.js", "/studio/page.js"])
    def test_what_the_page_needs_is_open(self, path: str):
        assert security.PAGE_PATHS.fullmatch(path)

    def test_a_closed_path_is_404(self, server: Server):
        answer = server.client.get("/gradio_api/file=/etc/passwd")
        assert answer.status_code == 404
        assert answer.json() == {"error": "there is no such address"}

    def test_web_sockets_are_closed(self):
        sent = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            raise AssertionError

        async def app(*_: Any) -> None:
            raise AssertionError

        asyncio.run(Security(app, Policy())({"type": "websocket"}, receive, send))
        assert sent == [{"type": "websocket.close", "code": 1008}]


class TestHeaders:
    @pytest.mark.parametrize("path", ["/api/info", "/api/nothing", "/nothing", "/healthz", "/api/docs"])
    def test_every_answer_has_them(self, server: Server, path: str):
        headers = server.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert len(headers["x-request-id"]) == 16

    def test_two_requests_have_two_ids(self, server: Server):
        assert len({server.client.get("/healthz").headers["x-request-id"] for _ in range(2)}) == 2

    def test_only_the_scripts_of_the_page_run(self, tmp_path: Path):
        scripts = ["window.a = 1;", "\nb()\n"]
        page = f"<script>{scripts[0]}</script><script type='x'>{scripts[1]}</script><script src='/a.js'></script>"

        def add_page(app: FastAPI, _: Any) -> FastAPI:
            app.add_api_route("/", lambda: HTMLResponse(page), methods=["GET"])
            return app

        with serve(tmp_path / "project", add_page=add_page) as running:
            answer = running.client.get("/")
        assert answer.text == page
        policy = answer.headers["content-security-policy"]
        (script_policy,) = [part for part in policy.split("; ") if part.startswith("script-src")]
        hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
        assert script_policy == " ".join(
            ["script-src 'self' 'unsafe-eval'", *(f"'sha256-{value}'" for value in hashes)]
        )
        assert "frame-ancestors 'none'" in policy


class TestToken:
    @pytest.mark.parametrize(
        "path", ["/", "/api/info", "/api/takes", "/metrics", "/api/openapi.json", "/api/docs"]
    )
    def test_nothing_answers_without_it(self, guarded: TestClient, path: str):
        answer = guarded.get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in answer.text

    def test_only_the_health_check_does(self, guarded: TestClient):
        assert guarded.get("/healthz").status_code == 200

    def test_the_header(self, guarded: TestClient):
        assert guarded.get("/api/info", headers=WITH_TOKEN).status_code == 200

    @pytest.mark.parametrize(
        "value", ["Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer", TOKEN, "Bearer é"]
    )
    def test_another_header(self, guarded: TestClient, value: str):
        answer = guarded.get("/api/info", headers={"authorization": value.encode()})
        assert answer.status_code == 401

    def test_the_first_visit_sets_a_cookie(self, guarded: TestClient):
        answer = guarded.get(f"/?a=1&token={TOKEN}")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/?a=1"
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert TOKEN not in cookie
        assert guarded.get("/api/info").status_code == 200
        guarded.cookies.clear()
        assert guarded.get("/api/info", headers={"cookie": "melody_studio=x"}).status_code == 401
        assert guarded.get("/api/info", headers={"cookie": 'melody_studio="\\'}).status_code == 401

    def test_a_wrong_token_sets_none(self, guarded: TestClient):
        answer = guarded.get("/?token=wrong")
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers

    def test_a_token_does_not_change_what_is_changed(self, guarded: TestClient):
        assert guarded.post(f"/api/jobs?token={TOKEN}", json={}).status_code == 401

    def test_guesses_are_limited(self, guarded: TestClient):
        statuses = [guarded.get("/?token=guess").status_code for _ in range(20)]
        assert statuses == sorted(statuses)
        assert statuses.count(401) <= security.FAILED_TOKENS_PER_MINUTE + 1
        assert guarded.get("/api/info", headers=WITH_TOKEN).status_code == 429

    @pytest.mark.parametrize("token", ["", "short", "with spaces in it x", "é" * 20, "a\n" * 10])
    def test_what_is_no_token(self, token: str):
        with pytest.raises(UserError, match="at least 16"):
            security.check_token(token)


class TestSizes:
    def test_a_body_that_announces_too_much(self, server: Server):
        answer = server.client.post(
            "/api/jobs", content=bytes(security.MAX_BODY + 1), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413
        assert "262,144" in answer.json()["error"]

    def test_a_body_that_announces_nothing(self, server: Server):
        def parts() -> Iterator[bytes]:
            for _ in range(10):
                yield bytes(security.MAX_BODY // 8)

        answer = server.client.post(
            "/api/jobs", content=parts(), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413

    @pytest.mark.parametrize("kind", ["audio/wav", "multipart/form-data; boundary=x"])
    def test_an_upload_that_announces_nothing(self, tmp_path: Path, kind: str):
        with serve(tmp_path / "project", policy=Policy(upload_bytes=1 << 16)) as running:

            def parts() -> Iterator[bytes]:
                yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
                for _ in range(10):
                    yield bytes(1 << 15)

            answer = running.client.post("/api/uploads", content=parts(), headers={"content-type": kind})
            assert answer.status_code == 413
            assert running.client.post("/api/uploads", content=bytes(1 << 18)).status_code == 413
            folder = running.queue.project.folder
            assert not [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]

    @pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "", "9" * 30])
    def test_what_is_no_length(self, server: Server, length: str):
        answer = server.client.post("/api/jobs", content=b"", headers={"content-length": length})
        assert answer.status_code == 400

    def test_a_body_that_does_not_come(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(security, "IDLE_SECONDS", 0.01)

        async def receive() -> Any:
            await asyncio.sleep(60)

        body = security.Body(receive, 10)
        with pytest.raises(security.Refused) as caught:
            asyncio.run(body.receive())
        assert caught.value.status == 408


class TestRates:
    def test_changes(self, tmp_path: Path):
        with limited(tmp_path, changes_per_minute=4) as running:
            answers = [running.client.post("/api/jobs", json={"x": 1}) for _ in range(5)]
            assert [answer.status_code for answer in answers[:2]] == [422, 422]
            assert answers[-1].status_code == 429
            assert int(answers[-1].headers["retry-after"]) > 1
            assert running.client.get("/api/jobs").status_code == 200

    def test_uploads(self, tmp_path: Path):
        with limited(tmp_path, uploads_per_minute=2) as running:
            assert running.client.post("/api/uploads", content=noise()).status_code == 201
            assert running.client.post("/api/uploads", content=noise()).status_code == 429

    def test_requests(self, tmp_path: Path):
        with limited(tmp_path, requests_per_second=0.1) as running:
            statuses = [running.client.get("/api/info").status_code for _ in range(4)]
            assert statuses == [200, 200, 429, 429]

    def test_a_bucket_fills_again(self):
        buckets = TokenBuckets(2.0, 2)
        assert [buckets.take("a", 0.0) for _ in range(3)] == [0, 0, 1]
        assert buckets.take("b", 0.0) == 0
        assert buckets.take("a", 0.5) == 0
        assert buckets.take("a", 0.5) == 1
        assert [buckets.take("a", 100.0) for _ in range(3)] == [0, 0, 1]

    def test_a_bucket_forgets_old_clients(self):
        buckets = TokenBuckets(1.0, 1)
        for number in range(2 * MAX_CLIENTS):
            buckets.take(str(number), 0.0)
        assert len(buckets._levels) == MAX_CLIENTS

    def test_requests_at_the_same_time(self):
        requests = OpenRequests(2)
        assert [requests.enter("a") for _ in range(3)] == [True, True, False]
        assert requests.enter("b")
        requests.leave("a")
        assert requests.enter("a")

    @pytest.mark.parametrize(
        ("address", "client"),
        [
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("testclient", "testclient"),
        ],
    )
    def test_clients(self, address: str, client: str):
        assert client_name(address) == client
