"""The seam of systems: one that is written here, in a few lines, is loaded, sampled and run as a batch job."""

import importlib
import re
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.docs import ROOT
from helpers.tiny import tiny_networks

from melody_jax import release, release_folder, systems
from melody_jax.config import load_config
from melody_jax.errors import UserError
from melody_jax.options import replace_fields
from melody_jax.python_file import function_of
from melody_jax.sampling.batch_job import BatchJobConfig, run_batch_job
from melody_jax.sampling.cascade import load_networks
from melody_jax.sampling.prompt_file import read_prompt_file
from melody_jax.sampling.prompts import PromptEncoder
from melody_jax.sampling.request import Request
from melody_jax.sampling.system import System, refuse_settings, require_networks

NETWORKS = ("mulan", "vae")


class Hum(System):
    """A tone whose pitch is the first prefix token of the prompt."""

    def __init__(self, params, configs, hashes, tokenizer) -> None:
        self.params, self.configs, self.hashes, self.tokenizer = params, configs, hashes, tokenizer

    @property
    def window_seconds(self) -> float:
        return 3.2

    @property
    def prompt_encoder(self) -> PromptEncoder:
        return PromptEncoder(self.params["mulan"], self.configs["mulan"], self.tokenizer, 76_800)

    def check(self, request: Request, source_samples: int | None = None) -> None:
        refuse_settings(request, ("source", "steps"), "hum")

    def program(self, request: Request) -> Hashable:
        return request.seconds

    def run(self, requests: Sequence[Request], *, progress: bool = False) -> list[np.ndarray]:
        for request in requests:
            self.check(request)
        encoded = self.prompt_encoder.encode_requests(requests)
        pitches = [220 * (1 + encoded[request].prefix_at(0.0)[0]) for request in requests]
        times = [
            np.arange(round(request.seconds * self.sample_rate)) / self.sample_rate for request in requests
        ]
        return [
            (0.1 * np.sin(2 * np.pi * pitch * time)).astype(np.float32)
            for pitch, time in zip(pitches, times, strict=True)
        ]


def load(name: str, *, folder: Path | None = None) -> Hum:
    require_networks(name, folder, NETWORKS, "hum")
    return Hum(*load_networks(name, folder, NETWORKS))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the release "some", and the system registered."""
    for name, (params, config) in tiny_networks().items():
        if name in NETWORKS:
            release.save_network(tmp_path / "some", name, params, config, {})
    monkeypatch.setitem(systems.SYSTEMS, "hum", __name__)
    return tmp_path


def test_a_sixth_system_is_one_file_and_one_line(folder: Path) -> None:
    system = systems.load("some", system="hum", folder=folder)
    low, high = system.generate(["piano", "driving techno at 130 bpm"], seconds=0.5)
    assert low.shape == high.shape == (12_000,)
    with pytest.raises(UserError, match="steps is 3: hum has no such setting"):
        system.generate("piano", steps=3)
    with pytest.raises(UserError, match="there is no prompt; describe the music"):
        system.generate([None])
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"id": "a", "prompt": "piano"}\n')
    job = BatchJobConfig(prompts=prompts, out=folder / "clips")
    assert run_batch_job(system, job, read_prompt_file(prompts, {"seconds": 0.5})) == 1
    clip = soundfile.read(folder / "clips" / "a.wav", dtype="float32")[0]
    np.testing.assert_allclose(clip, low, atol=2e-4)
    (folder / "some" / "vae.json").unlink()
    with pytest.raises(UserError, match="some has no vae, and hum needs mulan, vae; train it as"):
        systems.load("some", system="hum", folder=folder)


@pytest.mark.parametrize(
    "folder", sorted(release_folder.WEIGHTS.glob("*_ablation")), ids=lambda path: path.name
)
def test_the_packaged_networks_are_those_of_their_configs(folder: Path) -> None:
    page = (ROOT / "docs" / "systems.md").read_text()
    (exported,) = re.findall(rf"^\| `{folder.name}` \| (.*?) \|", page, re.M)
    configs = dict(re.findall(r"`(\w+)`: `(\w+)`", exported))
    networks = [path.stem for path in folder.glob("*.safetensors")]
    assert networks
    for network in networks:
        _, model, needs = release.load_network(folder, network)
        assert model == load_config(configs[network]).stage.model
        for other, digest in needs.items():
            assert digest == release.network_hash(folder, other), (network, other)


def test_the_compared_releases_are_complete(tmp_path: Path) -> None:
    """The table of folders in docs/systems.md: each release has the networks of its system, its own or its bases'."""
    page = (ROOT / "docs" / "systems.md").read_text()
    rows = re.findall(r"^\| `(\w+_ablation)` \| (.*) \| `(\[.*\])` \| (.*) \|$", page, re.M)
    owned = {folder: dict(re.findall(r"`(\w+)`: `(\w+)`", exported)) for folder, exported, _, _ in rows}
    for folder, _, bases, _ in rows:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / release_folder.BASES).write_text(bases)
        for network, config in owned[folder].items():
            assert load_config(config).stage.name == network
            (tmp_path / folder / f"{network}.json").touch()
    study = function_of(ROOT / "configs" / "ablations" / "systems.py", "study")()
    arms = [replace_fields(study.base, arm) for arm in study.arms.values()]
    assert {arm.model for arm in arms} == owned.keys()
    shared = {folder: re.findall(r"`(\w+)`", networks) for folder, _, _, networks in rows}
    for arm in arms:
        needed = importlib.import_module(systems.SYSTEMS[arm.system]).NETWORKS
        assert set(needed) <= {*owned[arm.model], *shared[arm.model]}
        for network in (*needed, *shared[arm.model]):
            home = release_folder.network_folder(tmp_path / arm.model, network)
            assert (home / f"{network}.json").is_file()
            assert (home == tmp_path / arm.model) == (network in owned[arm.model])
