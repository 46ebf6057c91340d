"""Releases that come from a hub, which a local server stands in for."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.hub import HubStandIn, empty_hub, small_release
from huggingface_hub import constants

import melody_jax
from melody_jax import hub, release_folder
from melody_jax.errors import InputWarning, UserError
from melody_jax.hub import HubName

REPO = "owner/tiny"
UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with empty_hub(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture
def commit(server: HubStandIn, releases: Path) -> str:
    """The commit of the tests' release, which is on the hub."""
    return server.publish(REPO, releases / "tiny")


@pytest.fixture
def small(server: HubStandIn, tmp_path: Path) -> Path:
    """A folder with a release of one network that the hub has, for tests that load nothing."""
    folder = small_release(tmp_path / "small")
    server.publish("owner/small", folder)
    return folder


def repository(name: str = "owner--small") -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{name}"


def test_a_release_is_loaded_from_the_hub(commit: str, releases: Path):
    loaded = melody_jax.load(REPO)
    local = melody_jax.load("tiny", folder=releases)
    assert loaded.hashes == local.hashes
    jax.tree.map(np.testing.assert_array_equal, loaded.params, local.params)
    assert (repository("owner--tiny") / "refs" / "main").read_text() == commit


def test_only_files_of_a_release_are_fetched(server: HubStandIn, small: Path):
    for name in ("README.md", "evil.py", "weights.pkl", "config.json", "run.sh"):
        (small / name).write_text("text")
    (small / "tempo.md").write_text("card")
    commit = server.publish("owner/small", small)
    snapshot = hub.fetch(HubName("owner/small", ""))
    assert snapshot == repository() / "snapshots" / commit
    names = {"README.md", "tempo.json", "tempo.safetensors", "tempo.md"}
    assert {path.name for path in snapshot.iterdir()} == names
    fetched = {request.rpartition("/")[2] for request in server.requests if request.startswith("GET /owner")}
    assert fetched <= names


def test_a_second_load_fetches_nothing(server: HubStandIn, small: Path):
    first = hub.fetch(HubName("owner/small", ""))
    server.requests.clear()
    assert hub.fetch(HubName("owner/small", "")) == first
    assert server.requests == ["GET /api/models/owner/small"]


def test_a_commit_in_the_cache_needs_no_network(
    server: HubStandIn, small: Path, monkeypatch: pytest.MonkeyPatch
):
    commit = hub.fetch(HubName("owner/small", "")).name
    assert hub.pin("owner/small") == f"hf://owner/small@{commit}"
    monkeypatch.setenv("HF_ENDPOINT", UNREACHABLE)
    server.requests.clear()
    assert hub.fetch(HubName("owner/small", commit)).name == commit
    assert not server.requests


def test_without_a_network_the_cache_is_used(small: Path, monkeypatch: pytest.MonkeyPatch):
    first = hub.fetch(HubName("owner/small", ""))
    monkeypatch.setenv("HF_ENDPOINT", UNREACHABLE)
    with pytest.warns(
        InputWarning, match=f"cannot be reached .*commit {first.name[:12]}, which is in the cache"
    ):
        assert hub.fetch(HubName("owner/small", "")) == first
    with pytest.raises(
        UserError, match=r"^owner/other: missing in the cache .* load it once with a network$"
    ):
        hub.fetch(HubName("owner/other", ""))


def test_offline_mode_is_silent(small: Path, server: HubStandIn, monkeypatch: pytest.MonkeyPatch):
    first = hub.fetch(HubName("owner/small", ""))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.requests.clear()
    assert hub.fetch(HubName("owner/small", "")) == first
    assert not server.requests
    with pytest.raises(UserError, match=r"missing in the cache .*HF_HUB_OFFLINE is set"):
        hub.fetch(HubName("owner/small", "v2"))


def test_a_cache_from_elsewhere_is_read(small: Path, monkeypatch: pytest.MonkeyPatch):
    """The library's layout, as other programs write it: refs, blobs, and snapshots of links."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = repository("owner--copied")
    for part in ("refs", "blobs", f"snapshots/{commit}"):
        (root / part).mkdir(parents=True)
    (root / "refs" / "v1").write_text(commit)
    for number, file in enumerate(sorted(small.iterdir())):
        shutil.copy(file, root / "blobs" / str(number))
        (root / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{number}")
    assert hub.fetch(HubName("owner/copied", "v1")) == root / "snapshots" / commit
    (root / "snapshots" / commit / "tempo.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"has tempo.json but no tempo.safetensors; the release is incomplete"
    ):
        hub.fetch(HubName("owner/copied", "v1"))


def test_a_process_reads_the_environment(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Started as a user starts it, with HF_HOME and HF_HUB_OFFLINE."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    commit = hub.fetch(HubName("owner/small", "main")).name
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    program = "from melody_jax import hub; print(hub.pin('owner/small@main'))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"hf://owner/small@{commit}"]
    assert not done.stderr


def test_a_revision_is_a_branch_a_tag_or_a_commit(server: HubStandIn, small: Path):
    first = server.repositories["owner/small"].branches["main"]
    (small / "ATTRIBUTION.md").write_text("new")
    second = server.publish("owner/small", small, branch="feature/louder")
    assert hub.fetch(HubName("owner/small", "feature/louder")).name == second
    assert (repository() / "refs" / "feature" / "louder").read_text() == second
    assert hub.fetch(HubName("owner/small", "main")).name == first
    assert hub.fetch(HubName("owner/small", second)).name == second
    with pytest.raises(
        UserError, match=r"^owner/small@v9: the repository has no such revision; give a branch"
    ):
        hub.fetch(HubName("owner/small", "v9"))


def test_a_branch_that_moves_is_fetched_again(server: HubStandIn, small: Path):
    first = hub.fetch(HubName("owner/small", ""))
    (small / "ATTRIBUTION.md").write_text("new")
    second = hub.fetch(HubName("owner/small", ""))
    assert second == first
    commit = server.publish("owner/small", small)
    third = hub.fetch(HubName("owner/small", ""))
    assert third.name == commit
    assert (third / "ATTRIBUTION.md").read_text() == "new"


def test_other_weights_than_described_are_refused(server: HubStandIn, small: Path):
    data = bytearray((small / "tempo.safetensors").read_bytes())
    data[-1] ^= 1
    (small / "tempo.safetensors").write_bytes(data)
    server.publish("owner/small", small)
    with pytest.raises(
        UserError, match=r"damaged, not the file that tempo.json describes; delete \S+owner--small to"
    ):
        melody_jax.load("owner/small", networks=("tempo",))
    assert not (repository() / "refs" / "main").exists()


def test_a_changed_description_is_refused(server: HubStandIn, small: Path):
    text = (small / "tempo.json").read_text().replace('"step": ', '"step": 1')
    (small / "tempo.json").write_text(text)
    server.publish("owner/small", small)
    with pytest.raises(UserError, match=r"tempo.json: changed since it was written"):
        hub.fetch(HubName("owner/small", ""))


def test_a_file_damaged_in_the_cache_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = hub.fetch(HubName("owner/small", ""))
    blob = (snapshot / "tempo.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"damaged, not the file that tempo.json describes"):
        hub.fetch(HubName("owner/small", snapshot.name))


@pytest.mark.parametrize("missing", ["tempo.json", "tempo.safetensors"])
def test_a_release_without_one_of_its_files_is_refused(server: HubStandIn, small: Path, missing: str):
    (small / missing).unlink()
    server.publish("owner/small", small)
    with pytest.raises(UserError, match=f"no {missing}; the release is incomplete"):
        hub.fetch(HubName("owner/small", ""))


def test_a_repository_of_something_else_is_refused(server: HubStandIn, tmp_path: Path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"0" * 2000)
    (tmp_path / "bert" / "README.md").write_text("BERT")
    server.publish("owner/bert", tmp_path / "bert")
    with pytest.raises(UserError, match=r"^owner/bert: not a release of melody_jax"):
        hub.fetch(HubName("owner/bert", ""))
    assert not [request for request in server.requests if "resolve" in request]


def test_a_file_that_is_too_large_is_not_fetched(
    server: HubStandIn, small: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(hub.MAX_BYTES, ".safetensors", 1000)
    with pytest.raises(UserError, match=r"tempo.safetensors has 8422 bytes; at most 1000 are possible"):
        hub.fetch(HubName("owner/small", ""))
    monkeypatch.setitem(hub.MAX_BYTES, ".safetensors", 10_000)
    monkeypatch.setattr(hub, "MAX_TOTAL", 9000)
    with pytest.raises(UserError, match="a release has at most 9000"):
        hub.fetch(HubName("owner/small", ""))
    assert not [request for request in server.requests if "resolve" in request]


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (
            404,
            {"X-Error-Code": "RepoNotFound"},
            "no such repository on http.*, or a private one; check the name",
        ),
        (404, {}, "no such repository"),
        (
            401,
            {"X-Error-Code": "RepoNotFound"},
            "no such repository on http.*log in with `hf auth login`, or set HF_",
        ),
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            r"refuses access \(401\); log in",
        ),
        (403, {"X-Error-Code": "GatedRepo"}, "the owner grants access on request; ask for it on"),
        (403, {}, r"refuses access \(403\).* with a token that has the permission"),
        (503, {}, r"missing in the cache .*cannot be reached \(status 503\)"),
        (429, {}, r"missing in the cache .*cannot be reached \(status 429\)"),
        (200, {}, r"failed on http"),
    ],
)
def test_refusals_are_one_line(server: HubStandIn, status: int, headers: dict[str, str], says: str):
    server.refusal = (status, headers)
    with pytest.raises(UserError, match=says) as error:
        hub.fetch(HubName("owner/small", ""))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("owner/small: ")


def test_a_download_that_breaks_off_is_continued(
    server: HubStandIn, small: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the library waits before it tries again
    server.breaks = {"tempo.safetensors": 1}
    snapshot = hub.fetch(HubName("owner/small", ""))
    assert (snapshot / "tempo.safetensors").read_bytes() == (small / "tempo.safetensors").read_bytes()
    assert server.breaks == {"tempo.safetensors": 0}


def test_a_hub_that_disappears_in_the_middle(
    server: HubStandIn, small: Path, monkeypatch: pytest.MonkeyPatch
):
    """What was complete before stays in use; the next try with a network completes the new commit."""
    first = hub.fetch(HubName("owner/small", ""))
    for suffix in ("json", "safetensors"):
        shutil.copy(release_folder.WEIGHTS / "mini" / f"tokenizer.{suffix}", small)
    second = server.publish("owner/small", small)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    server.breaks = {"tokenizer.safetensors": 1}
    server.refusal_after_break = (503, {})
    with pytest.raises(
        UserError, match=r"cannot be reached \(status 503\).*those that have are kept for the next try"
    ):
        hub.fetch(HubName("owner/small", ""))
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    assert not (repository() / "snapshots" / second / "tokenizer.safetensors").exists()
    with pytest.warns(InputWarning, match="which is in the cache"):
        assert hub.fetch(HubName("owner/small", "")) == first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="incomplete in the cache"):
        hub.fetch(HubName("owner/small", second))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.refusal = None
    assert hub.fetch(HubName("owner/small", "")).name == second


def test_a_base_that_is_not_here_is_named(server: HubStandIn, small: Path):
    (small / "bases.json").write_text(json.dumps(["mini"]))
    server.publish("owner/small", small)
    assert melody_jax.load("owner/small", networks=("vae", "tempo")).hashes
    (small / "bases.json").write_text(json.dumps(["old"]))
    server.publish("owner/small", small)
    with pytest.raises(UserError, match=r"names the release 'old', which is neither .* nor packaged"):
        melody_jax.load("owner/small", networks=("vae", "tempo"))


def test_without_the_extra_a_line_says_so(server: HubStandIn, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r"^owner/tiny: huggingface_hub is not installed; the extra 'hub' provides it"
    ):
        melody_jax.load(REPO)
