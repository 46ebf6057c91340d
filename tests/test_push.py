"""`melody push`: a release becomes a repository of a hub, which a local server stands in for."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from helpers.hub import TOKEN, HubStandIn, empty_hub, small_release
from huggingface_hub import constants

import melody_jax
from melody_jax import cli, hub, release_folder
from melody_jax.errors import UserError
from melody_jax.training.hub_card import BEGIN, NetworkFacts, hub_card

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the library's own upload
REPO = "owner/mine"
MINI = release_folder.WEIGHTS / "mini"
FACTS = [NetworkFacts("vae", 1_500_000, 2_000_000, {"mulan": "ab" * 32}, {"step": 10, "eval/loss": 0.5})]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """An empty hub, an empty cache, and a token. Files are uploaded as the stand-in can receive them."""
    with empty_hub(tmp_path, monkeypatch) as running:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with a release of one network."""
    return small_release(tmp_path / "release" / "small")


def push(folder: Path, *options: str) -> None:
    licence = () if "--licence" in options else ("--licence", "apache-2.0")
    cli.run(["push", "--release", str(folder), "--to", REPO, *licence, *options])


def front_matter(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def uploaded(server: HubStandIn, branch: str = "main") -> dict[str, bytes]:
    repository = server.repositories[REPO]
    return repository.commits[repository.branches[branch]]


def test_what_was_pushed_is_loaded_to_the_bit(
    server: HubStandIn, releases: Path, capsys: pytest.CaptureFixture[str]
):
    push(releases / "tiny")
    commit = server.repositories[REPO].branches["main"]
    assert capsys.readouterr().out == f"{server.url}/{REPO}: commit {commit}\n"
    loaded = melody_jax.load(REPO)
    local = melody_jax.load("tiny", folder=releases)
    assert loaded.hashes == local.hashes
    jax.tree.map(np.testing.assert_array_equal, loaded.params, local.params)
    for path in (releases / "tiny").iterdir():
        assert uploaded(server)[path.name] == path.read_bytes()


def test_everything_goes_in_one_commit(server: HubStandIn, small: Path):
    push(small, "--message", "first release")
    repository = server.repositories[REPO]
    assert list(repository.messages.values()) == ["initial commit", "first release"]
    assert sum("/commit/" in request for request in server.requests) == 1
    assert not repository.private
    assert uploaded(server).keys() == {".gitattributes", "README.md", "tempo.json", "tempo.safetensors"}


def test_only_files_of_a_release_are_pushed(
    server: HubStandIn, small: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("run.py", "notes.txt", "weights.pkl"):
        (small / name).write_text("secret")
    (small / "ATTRIBUTION.md").write_text("sources")
    push(small, "--dry-run")
    assert "not of a release, left out: notes.txt, run.py, weights.pkl" in capsys.readouterr().out
    push(small)
    assert uploaded(server).keys() >= {"ATTRIBUTION.md"}
    assert not uploaded(server).keys() & {"run.py", "notes.txt", "weights.pkl"}


def test_files_of_networks_that_are_gone_are_removed(server: HubStandIn, small: Path):
    for file in MINI.glob("tokenizer.*"):
        shutil.copy(file, small)
    push(small)
    for name in ("tokenizer.json", "tokenizer.safetensors"):
        (small / name).unlink()
    repository = server.repositories[REPO]
    repository.commit(uploaded(server) | {"page.html": b"of the owner"})
    push(small)
    assert uploaded(server).keys() == {
        ".gitattributes", "page.html", "README.md", "tempo.json", "tempo.safetensors",
    }  # fmt: skip


def test_a_branch_is_made(server: HubStandIn, small: Path):
    push(small)
    first = server.repositories[REPO].branches["main"]
    (small / "ATTRIBUTION.md").write_text("new")
    push(small, "--revision", "v2")
    assert server.repositories[REPO].branches["main"] == first
    assert uploaded(server, "v2")["ATTRIBUTION.md"] == b"new"
    push(small, "--revision", "v2", "--message", "again")
    assert hub.fetch(hub.HubName(REPO, "v2")).name == server.repositories[REPO].branches["v2"]


def test_private_means_private(server: HubStandIn, small: Path, monkeypatch: pytest.MonkeyPatch):
    push(small, "--private")
    assert server.repositories[REPO].private
    assert hub.fetch(hub.HubName(REPO, ""))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"no such repository on http\S+, or a private one"):
        hub.fetch(hub.HubName(REPO, ""))


def test_a_public_repository_is_not_taken_for_private(server: HubStandIn, small: Path):
    push(small)
    commits = len(server.repositories[REPO].commits)
    with pytest.raises(UserError, match="exists and is public; leave --private out"):
        push(small, "--private")
    assert len(server.repositories[REPO].commits) == commits


def test_a_dry_run_sends_nothing(
    server: HubStandIn, small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN")
    push(small, "--dry-run", "--card", "here.md")
    out = capsys.readouterr().out
    card = Path("here.md").read_text()
    assert "          8,422  tempo.safetensors\n" in out
    assert f"{len(card.encode()):>15,}  README.md\n" in out
    assert "bytes in 3 files" in out
    assert front_matter(card)["license"] == "apache-2.0"
    assert not server.requests
    assert not (small / "README.md").exists()


def test_the_token_stays_secret(server: HubStandIn, small: Path, capsys: pytest.CaptureFixture[str]):
    push(small)
    push(small, "--dry-run")
    printed = "".join(capsys.readouterr())
    assert TOKEN not in printed
    assert all(TOKEN.encode() not in data for data in uploaded(server).values())


def test_without_a_token_nothing_is_sent(server: HubStandIn, small: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        UserError, match=r"^no token of the hub: log in with `hf auth login`, or set HF_TOKEN$"
    ):
        push(small)
    assert not server.requests


def test_a_token_that_may_not_write(server: HubStandIn, small: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(
        UserError, match=r"refuses access \(403\).* with a token that has the permission"
    ) as error:
        push(small)
    assert "hf_of_somebody_else" not in str(error.value)
    assert not server.repositories


def test_a_card_that_the_hub_refuses(server: HubStandIn, small: Path):
    with pytest.raises(UserError, match=r'Bad request: "license" must be one of'):
        push(small, "--licence", "unheard-of")
    assert not [request for request in server.requests if "/commit/" in request]


def test_a_damaged_release_is_not_pushed(server: HubStandIn, small: Path):
    data = bytearray((small / "tempo.safetensors").read_bytes())
    data[-1] ^= 1
    (small / "tempo.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"damaged, not the file that tempo.json describes$"):
        push(small)
    assert not server.requests


def test_only_regular_files_are_opened(server: HubStandIn, small: Path):
    os.mkfifo(small / "ATTRIBUTION.md")
    with pytest.raises(UserError, match=r"ATTRIBUTION.md: not a regular file$"):
        push(small)


def test_networks_of_two_releases_are_not_pushed(server: HubStandIn, small: Path, releases: Path):
    for suffix in ("json", "safetensors"):
        shutil.copy(releases / "tiny" / f"mulan.{suffix}", small)
    with pytest.raises(
        UserError, match=r"tempo was trained with another mulan \(.*take all files from one release"
    ):
        push(small)
    assert not server.requests


def test_a_base_must_come_with_the_package(server: HubStandIn, small: Path):
    (small / "bases.json").write_text(json.dumps(["mini"]))
    push(small)
    assert json.loads(uploaded(server)["bases.json"]) == ["mini"]
    shutil.copytree(small, small.parent / "old")
    (small / "bases.json").write_text(json.dumps(["old"]))
    with pytest.raises(UserError, match="the base 'old' does not come with the package"):
        push(small)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--to", ""), "--to is missing"),
        (("--release", ""), "--release is missing"),
        (("--release", "nowhere"), "nowhere: no such folder of a release"),
        (("--release", "."), "not a release; it has no network"),
        (("--to", "owner"), "--to owner: it must be owner/name"),
        (("--to", "owner/mine@v1"), "the branch is --revision"),
        (("--revision", "../x"), r"--revision ../x: not the name of a branch"),
        (("--licence", ""), "licence is missing: give --licence, such as apache-2.0"),
        (("--licence", "do what you like"), "licence is 'do what you like'; it must be an identifier"),
    ],
)
def test_bad_options_are_refused(server: HubStandIn, small: Path, options: tuple[str, str], says: str):
    given = {"--release": str(small), "--to": REPO, "--licence": "mit"} | {options[0]: options[1]}
    with pytest.raises(UserError, match=says):
        cli.run(["push", *(word for pair in given.items() for word in pair)])
    assert not server.requests


def test_the_card_has_what_the_hub_reads():
    card = hub_card("", REPO, FACTS, "Apache-2.0", ["owner/base"])
    assert front_matter(card) == {
        "base_model": ["owner/base"],
        "library_name": "melody_jax",
        "license": "apache-2.0",
        "pipeline_tag": "text-to-audio",
        "tags": ["jax", "music", "music-generation", "text-to-music"],
    }
    assert "# mine\n" in card
    assert f"--model {REPO} " in card
    assert "| `vae` | latents to audio and back | 1.50 M | 2.00 MB | 10 |" in card
    assert f"- trained with mulan `{'ab' * 32}`" in card
    assert "| eval/loss | 0.5 |" in card


def test_the_text_of_the_release_stays():
    readme = "---\nlicense: mit\nlanguage: en\ntags: [piano]\nbase_model: owner/old\n---\n# My music\n\nMade of rain.\n"
    card = hub_card(readme, REPO, FACTS)
    data = front_matter(card)
    assert data["license"] == "mit"
    assert data["language"] == "en"
    assert data["base_model"] == "owner/old"
    assert data["tags"][0] == "piano"
    assert "# My music\n\nMade of rain.\n" in card
    assert hub_card(card, REPO, FACTS) == card
    renamed = hub_card(card, "owner/other", FACTS)
    assert renamed.count(BEGIN) == 1
    assert REPO not in renamed


def test_one_tag_needs_no_list():
    card = hub_card("---\nlicense: mit\ntags: piano\n---\ntext", REPO, FACTS)
    assert front_matter(card)["tags"][:2] == ["piano", "jax"]


@pytest.mark.parametrize("readme", ["---\n- a\n- b\n---\ntext", "---\na: [\n---\ntext"])
def test_front_matter_that_is_none_is_refused(readme: str):
    with pytest.raises(UserError, match=r"^README.md: the front matter is not that of a model card"):
        hub_card(readme, REPO, FACTS, "mit")
