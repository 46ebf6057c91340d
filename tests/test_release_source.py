"""Releases in buckets: copied to this machine with their bases, checked, and copied anew when they change."""

import shutil
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers.arrays import assert_same
from helpers.toy import run, toy_config

from melody_jax import load, object_store, release, release_source
from melody_jax.errors import UserError
from melody_jax.object_store import RemoteFolder
from melody_jax.training.command import with_local_releases

URL = "memory://bucket/releases"


def upload(folder: Path, url: str = URL) -> None:
    """Copies the files below a folder to the bucket."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    RemoteFolder(url).upload(folder, names)


@pytest.fixture
def tiny(bucket: Any, releases: Path, tmp_path: Path) -> Path:
    """A folder whose release "tiny" is in the bucket, too."""
    shutil.copytree(releases, tmp_path / "releases")
    upload(tmp_path / "releases")
    return tmp_path / "releases"


def test_a_release_of_a_bucket_sounds_as_the_local_one(tiny: Path) -> None:
    settings: dict[str, Any] = {"seconds": 1, "seed": 3, "steps": 1}
    remote = load("tiny", folder=URL)
    local = load("tiny", folder=tiny)
    assert remote.hash == local.hash
    assert_same(remote.generate("piano", **settings)[0], local.generate("piano", **settings)[0])


def test_it_is_copied_once_and_anew_when_it_changes(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    download = RemoteFolder.download

    def note(self: RemoteFolder, sizes: Any, folder: Path) -> None:
        copied.extend(sizes)
        download(self, sizes, folder)

    monkeypatch.setattr(RemoteFolder, "download", note)
    first = release_source.local_folder(f"{URL}/tiny")
    assert "tiny/lm.safetensors" in copied
    copied.clear()
    assert release_source.local_folder(f"{URL}/tiny") == first
    assert not copied
    params, config, hashes = release.read_network(tiny / "tiny", "lm")
    release.save_network(tiny / "tiny", "lm", jax.tree.map(lambda leaf: 2 * leaf, params), config, hashes)
    upload(tiny)
    second = release_source.local_folder(f"{URL}/tiny")
    assert second != first
    assert release.network_hash(second, "lm") == release.network_hash(tiny / "tiny", "lm")


def test_bases_beside_it_come_along(tiny: Path) -> None:
    small = tiny / "small"
    small.mkdir()
    for suffix in ("json", "safetensors"):
        (tiny / "tiny" / f"dpd.{suffix}").rename(small / f"dpd.{suffix}")
    (small / "bases.json").write_text('["tiny", "mini"]')
    upload(tiny)
    RemoteFolder(f"{URL}/tiny").delete(["dpd.json", "dpd.safetensors"])
    copy = Path(release_source.local_folder(f"{URL}/small"))
    assert sorted(path.name for path in copy.parent.iterdir() if path.is_dir()) == ["small", "tiny"]
    assert load("small", folder=URL).hash == load("small", folder=tiny).hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "lm.safetensors").write_bytes(b"0"), "lm.safetensors: damaged"),
        (
            lambda folder: (folder / "bases.json").write_text('["../x"]'),
            "bases.json: must be a list of names",
        ),
        (lambda folder: (folder / "bases.json").write_text("["), "bases.json: not JSON"),
        (lambda folder: (folder / "lm.json").write_text("["), "lm.json: not JSON"),
    ],
)
def test_a_damaged_release_is_refused_and_does_not_stay(tiny: Path, change: Any, message: str) -> None:
    change(tiny / "tiny")
    upload(tiny)
    for _ in range(2):
        with pytest.raises(UserError, match=message) as caught:
            load("tiny", folder=URL)
        assert "\n" not in str(caught.value)
    upload(tiny.parent / "none")
    assert not list(object_store.cache_folder("releases", "").parent.glob("*/tiny"))


def test_what_is_no_release_is_refused(bucket: Any) -> None:
    with pytest.raises(UserError, match=r"memory://bucket/releases/tiny: .*no release"):
        load("tiny", folder=URL)


def test_a_run_starts_from_a_run_of_a_bucket(bucket: Any, tmp_path: Path) -> None:
    run(toy_config(tmp_path / "run", steps=5, eval_every=0))
    upload(tmp_path / "run", "memory://bucket/run")
    remote = toy_config(tmp_path / "remote", steps=3, init_from="memory://bucket/run")
    local = toy_config(tmp_path / "local", steps=3, init_from=str(tmp_path / "run"))
    assert_same(run(with_local_releases(remote)).params, run(local).params)
    with pytest.raises(UserError, match="memory://bucket/nothing: no release"):
        with_local_releases(toy_config(tmp_path / "third", init_from="memory://bucket/nothing"))
