"""Releases that take networks from others."""

import json
import shutil
from pathlib import Path

import jax
import pytest

from melody_jax import load, release, release_folder
from melody_jax.errors import UserError
from melody_jax.models import lm, lm_config

MINI = release_folder.WEIGHTS / "mini"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release without networks."""
    path = tmp_path / "young"
    path.mkdir()
    return path


def write_bases(folder: Path, *names: str) -> None:
    (folder / "bases.json").write_text(json.dumps(names))


def test_networks_come_from_the_first_base_that_has_them(folder: Path) -> None:
    beside = folder.parent / "old"
    beside.mkdir()
    config = lm_config.TINY
    release.save_network(beside, "lm", lm.init(config, jax.random.key(0)), config, {})
    write_bases(folder, "old", "mini")
    assert release_folder.network_folder(folder, "lm") == beside
    assert release_folder.network_folder(folder, "vae") == MINI
    assert release_folder.network_folder(folder, "coarse") == folder
    assert release_folder.has_network(folder, "lm")
    assert not release_folder.has_network(folder, "coarse")
    assert release.read_network(folder, "lm")[1] == config
    assert release.network_hash(folder, "vae") == release.network_hash("mini", "vae")


def test_its_own_networks_come_first(folder: Path) -> None:
    write_bases(folder, "mini")
    for file in MINI.glob("vae.*"):
        shutil.copy(file, folder)
    assert release_folder.network_folder(folder, "vae") == folder


def test_it_samples_with_the_networks_of_its_base(folder: Path) -> None:
    write_bases(folder, "mini")
    young = load("young", folder=folder.parent)
    assert young.hashes == load("mini").hashes


def test_a_release_may_be_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = folder.parent / "mini"
    beside.mkdir()
    for file in MINI.glob("vae.*"):
        shutil.copy(file, beside)
    write_bases(folder, "mini")
    monkeypatch.chdir(folder)
    assert release_folder.network_folder(".", "vae") == beside


def test_a_difference_needs_its_own_base(folder: Path) -> None:
    """The distilled diffusion of a base is the difference to the diffusion of that base."""
    write_bases(folder, "mini")
    params, config, _ = release.read_network(MINI, "dpd")
    changed = jax.tree.map(lambda leaf: 1.5 * leaf, params)
    release.save_network(folder, "dpd", changed, config, {})
    with pytest.raises(UserError, match="dpd_distilled was made from another dpd"):
        release.read_network(folder, "dpd_distilled")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('"mini"', "must be a list of names"),
        ("[7]", "must be a list of names"),
        ('["../mini"]', "must be a list of names"),
        ('["/tmp"]', "must be a list of names"),
        ('[".."]', "must be a list of names"),
        ("[", "not JSON"),
        ('["maxi"]', "names the release 'maxi', which is neither .*maxi nor packaged"),
    ],
)
def test_bad_bases_are_refused(folder: Path, text: str, says: str) -> None:
    (folder / "bases.json").write_text(text)
    with pytest.raises(UserError, match=says):
        release_folder.network_folder(folder, "lm")
