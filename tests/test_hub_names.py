"""Names of releases on a hub, in all commands that take one; a local server stands in for the hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.hub import HubStandIn, empty_hub, small_release

import melody_jax
from melody_jax import cli, hub, release, release_source
from melody_jax.errors import UserError
from melody_jax.hub import HubName

REPO = "owner/tiny"


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


def test_names_without_a_slash_stay_here(server: HubStandIn, releases: Path):
    with pytest.raises(UserError, match="no released model 'maxi'"):
        melody_jax.load("maxi")
    with pytest.raises(UserError, match=f"no released model '{REPO}' in {releases}"):
        melody_jax.load(REPO, folder=releases)
    assert not server.requests


def test_a_folder_of_releases_may_have_folders(tmp_path: Path, releases: Path, server: HubStandIn):
    (tmp_path / "owner").symlink_to(releases)
    assert melody_jax.load(REPO, folder=tmp_path, networks=("vae",)).hashes
    with pytest.raises(UserError, match=r"owner/tiny is a folder here, .*--folder owner .* hf://owner/tiny$"):
        melody_jax.load(REPO)
    assert not server.requests


@pytest.mark.parametrize(
    "name", ["./tiny", "../tiny", "/tiny", "a/b/c", "owner/", "/", "a/b@", "a/b@../c", "a b/c"]
)
def test_other_names_with_a_slash_are_not_the_hub_s(name: str):
    assert hub.hub_name(name) is None


@pytest.mark.parametrize("name", ["hf://owner", "hf://", "hf://a/b/c", "hf://a/b@..", "hf://a/b@c d"])
def test_bad_addresses_are_refused(name: str):
    with pytest.raises(UserError, match=r"is hf://owner/name or hf://owner/name@revision$"):
        hub.hub_name(name, folder="releases")


def test_the_hub_s_own_rules_for_names(server: HubStandIn):
    with pytest.raises(UserError, match=r"^a--b/c: not a name of the hub; it must be owner/name"):
        hub.fetch(HubName("a--b/c", ""))


def test_a_folder_option_takes_an_address(small: Path):
    snapshot = release_source.local_folder("hf://owner/small")
    assert release.read_network(snapshot, "tempo")[1]
    assert release_source.local_folder("owner/small") == "owner/small"


def test_the_command_samples_from_the_hub(commit: str, tmp_path: Path):
    out = tmp_path / "song.wav"
    cli.run(
        [
            "sample",
            "piano",
            "--model",
            f"{REPO}@{commit}",
            "--seconds",
            "1",
            "--steps",
            "1",
            "--out",
            str(out),
        ]
    )
    assert out.stat().st_size > 44


def test_an_exported_sampler_names_the_commit(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from melody_jax.sampling import export_sampler

    def load(name: str, **_: object) -> None:
        raise UserError(f"loaded {name}")

    monkeypatch.setattr(export_sampler, "load", load)
    commit = hub.fetch(HubName("owner/small", "")).name
    config = export_sampler.SamplerExportConfig(model="owner/small", out=tmp_path / "exported")
    with pytest.raises(UserError, match=f"^loaded hf://owner/small@{commit}$"):
        export_sampler.export_sampler(config)


def test_preparation_reads_a_release_from_the_hub(small: Path, tmp_path: Path):
    from melody_jax.data import prepare
    from melody_jax.data.prepare_config import PrepareConfig

    given = PrepareConfig(source=str(tmp_path), out=str(tmp_path / "out"), networks="hf://owner/small")
    config = prepare._with_absolute_paths(given)
    assert config.networks == str(hub.fetch(HubName("owner/small", "")))


def test_training_reads_a_release_from_the_hub(small: Path):
    from melody_jax.config import load_config
    from melody_jax.training.command import with_local_releases

    options = ["--data.networks", "hf://owner/small", "--init-from", "hf://owner/small"]
    config = with_local_releases(load_config("tempo_mini", options))
    assert release.network_hash(config.data.networks, "tempo") == release.network_hash("mini", "tempo")
    assert config.init_from == config.data.networks
