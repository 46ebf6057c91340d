"""A stand-in for the Hugging Face Hub: the HTTP endpoints that its library calls to fetch and to publish a model."""

import base64
import contextlib
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

from melody_jax import release_folder

LARGE = 1000
"""Bytes from which on a file is stored as a large one, at another address."""
TOKEN = "hf_test"
"""The token that may write."""


@dataclass
class Repository:
    """Commits of a model; the newest of a branch is `branches[name]`."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        """Adds a commit with exactly these files; returns its hash."""
        listing = sorted((name, hashlib.sha256(data).hexdigest()) for name, data in files.items())
        digest = hashlib.sha1(json.dumps([listing, len(self.commits)]).encode()).hexdigest()
        self.commits[digest] = dict(files)
        self.branches[branch] = digest
        self.messages[digest] = message
        return digest


class HubStandIn(ThreadingHTTPServer):
    """Serves `repositories` at `url`. A test reads `requests` and sets the faults."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refusal: tuple[int, dict[str, str]] | None = None
        """Status and headers of every answer."""
        self.breaks: dict[str, int] = {}
        """Name of a file -> how many of its downloads break off in the middle."""
        self.refusal_after_break: tuple[int, dict[str, str]] | None = None
        """The `refusal` from then on."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def store_url(self) -> str:
        """Where large files are: another host, as for the hub, since the library follows redirects to the same."""
        return f"http://localhost:{self.server_address[1]}"

    def publish(self, repo: str, folder: Path, branch: str = "main") -> str:
        """Adds a commit with the files of a folder; returns its hash."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        return self.repositories.setdefault(repo, Repository()).commit(files, branch)


@contextlib.contextmanager
def running() -> Iterator[HubStandIn]:
    """A stand-in while the context lasts."""
    with HubStandIn() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def empty_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A stand-in that the library uses, without a token and with an empty cache in `folder`, the working directory."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(folder)
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def small_release(folder: Path) -> Path:
    """Creates a folder with a release of one network."""
    folder.mkdir(parents=True)
    for file in (release_folder.WEIGHTS / "mini").glob("tempo.*"):
        shutil.copy(file, folder)
    return folder


class _Failure(Exception):
    """An answer of the hub that is an error."""

    def __init__(self, status: int, code: str) -> None:
        self.status = status
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.server.requests.append(f"{self.command} {url.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.refusal is not None:
            status, headers = self.server.refusal
            self._send(status, b"{}", headers)
            return
        try:
            for method, pattern, answer in ROUTES:
                if self.command in method.split("|") and (match := re.fullmatch(pattern, url.path)):
                    answer(self, body, parse_qs(url.query), *map(unquote, match.groups()))
                    return
            raise _Failure(404, "NoSuchEndpoint")
        except _Failure as failure:
            self._send(failure.status, b"{}", {"X-Error-Code": failure.code})

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _repository(self, repo: str) -> Repository:
        if repo not in self.server.repositories:
            raise _Failure(404, "RepoNotFound")
        repository = self.server.repositories[repo]
        if repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Failure(401, "RepoNotFound")
        return repository

    def _commit(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self._repository(repo)
        digest = repository.branches.get(revision, revision)
        if digest not in repository.commits:
            raise _Failure(404, "RevisionNotFound")
        return digest, repository.commits[digest]

    def _check_writer(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Failure(403, "Forbidden")

    def info(self, _: bytes, query: dict, repo: str, revision: str | None = None) -> None:
        digest, files = self._commit(repo, revision or "main")
        siblings = [{"rfilename": name} | _sizes(data) for name, data in files.items()]
        private = self._repository(repo).private
        self._send_json(
            {"id": repo, "modelId": repo, "sha": digest, "private": private, "siblings": siblings, "tags": []}
        )

    def tree(self, _: bytes, query: dict, repo: str, revision: str) -> None:
        _, files = self._commit(repo, revision)
        self._send_json(
            [
                {"type": "file", "path": name, "oid": _git_hash(data)} | _sizes(data, "oid")
                for name, data in files.items()
            ]
        )

    def resolve(self, _: bytes, query: dict, repo: str, revision: str, name: str) -> None:
        digest, files = self._commit(repo, revision)
        if name not in files:
            raise _Failure(404, "EntryNotFound")
        data = files[name]
        headers = {"X-Repo-Commit": digest, "Accept-Ranges": "bytes"}
        if len(data) < LARGE:
            self._send_file(name, data, headers | {"ETag": f'"{_git_hash(data)}"'})
            return
        sha256 = hashlib.sha256(data).hexdigest()
        headers |= {
            "X-Linked-Etag": f'"{sha256}"',
            "X-Linked-Size": str(len(data)),
            "Location": f"{self.server.store_url}/large/{repo}/{digest}/{name}",
        }
        self._send(302, b"", headers)

    def large(self, _: bytes, query: dict, repo: str, digest: str, name: str) -> None:
        data = self.server.repositories[repo].commits[digest][name]
        self._send_file(
            name, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        )

    def _send_file(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        begin = int((re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") or [0, 0])[1])
        if begin:
            headers |= {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
        part = data[begin:]
        if self.command == "GET" and self.server.breaks.get(name):
            self.server.breaks[name] -= 1
            self.server.refusal = self.server.refusal_after_break
            self.close_connection = True
            headers |= {"Content-Length": str(len(part))}
            part = part[: len(part) // 2]
        self._send(206 if begin else 200, part, headers)

    def create(self, body: bytes, query: dict) -> None:
        self._check_writer()
        request = json.loads(body)
        repo = f"{request['organization']}/{request['name']}"
        if repo in self.server.repositories:
            self._send_json({"url": f"{self.server.url}/{repo}"}, 409)
            return
        repository = Repository(
            private=request.get("visibility") == "private" or bool(request.get("private"))
        )
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, message="initial commit")
        self.server.repositories[repo] = repository
        self._send_json({"url": f"{self.server.url}/{repo}"})

    def branch(self, _: bytes, query: dict, repo: str, name: str) -> None:
        self._check_writer()
        repository = self._repository(repo)
        if name in repository.branches:
            raise _Failure(409, "Conflict")
        repository.branches[name] = repository.branches["main"]
        self._send_json({})

    def validate(self, body: bytes, query: dict) -> None:
        errors = [{"message": '"license" must be one of ...'}] if b"license: unheard-of" in body else []
        self._send_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, body: bytes, query: dict, repo: str, revision: str) -> None:
        self._check_writer()
        _, present = self._commit(repo, revision)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": _git_hash(present[file["path"]]) if file["path"] in present else None,
            }
            for file in json.loads(body)["files"]
        ]
        self._send_json({"files": files})

    def batch(self, body: bytes, query: dict, repo: str) -> None:
        self._check_writer()
        objects = [
            entry
            | {"actions": {"upload": {"href": f"{self.server.url}/upload/{entry['oid']}", "header": {}}}}
            for entry in json.loads(body)["objects"]
        ]
        self._send_json({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, query: dict, digest: str) -> None:
        if hashlib.sha256(body).hexdigest() != digest:
            raise _Failure(400, "BadDigest")
        self.server.uploads[digest] = body
        self._send(200)

    def commit(self, body: bytes, query: dict, repo: str, revision: str) -> None:
        self._check_writer()
        parent, present = self._commit(repo, revision)
        files = dict(present)
        message = ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit", parent) != parent:
                    raise _Failure(412, "PreconditionFailed")
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        digest = self._repository(repo).commit(files, revision, message)
        self._send_json({"commitUrl": f"{self.server.url}/{repo}/commit/{digest}", "commitOid": digest})


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _sizes(data: bytes, digest_name: str = "sha256") -> dict[str, Any]:
    """The fields of a file in a listing that depend on its content."""
    large = {digest_name: hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return {"size": len(data), "blobId": _git_hash(data)} | ({"lfs": large} if len(data) >= LARGE else {})


REPO = r"([^/]+/[^/]+)"
ROUTES = (
    ("GET", rf"/api/models/{REPO}", _Handler.info),
    ("GET", rf"/api/models/{REPO}/revision/([^/]+)", _Handler.info),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)", _Handler.tree),
    ("GET|HEAD", rf"/{REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("GET|HEAD", rf"/large/{REPO}/([^/]+)/(.+)", _Handler.large),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", rf"/api/models/{REPO}/branch/([^/]+)", _Handler.branch),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{REPO}/preupload/([^/]+)", _Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/upload/([0-9a-f]+)", _Handler.upload),
    ("POST", rf"/api/models/{REPO}/commit/([^/]+)", _Handler.commit),
)
"""Methods, path and answer of each endpoint."""
