"""A tiny study from the command line: runs, claims, resuming, pairing, the report; and what an arm costs in lines."""

import ast
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from melody_jax import cli
from melody_jax.ablation import files, paired_runs, study, study_report, training
from melody_jax.ablation.ablate import AblateConfig, Run, ablate, runs_of, work
from melody_jax.ablation.statistics import interval
from melody_jax.config import DataConfig, TrainConfig
from melody_jax.data.records import ShardManifest, encode_json, shard_name, write_manifest, write_shard
from melody_jax.errors import UserError
from melody_jax.models import denoiser, dpd, vae
from melody_jax.training.stages.dpd import DPDStage

STUDIES = sorted((Path(__file__).parents[1] / "configs" / "ablations").glob("*.py"))
FILE = """
from test_ablate import base
from melody_jax.ablation.study import Claim, Study

def study():
    return Study(
        title="Tiny", question="?", base=base(), seeds=(5,),
        arms={"base": {}, "one angle": {"stage.model.chunks": 1}},
        metrics=("velocity_mse", "continuation_si_snri", "log_mel_l1", "frechet"),
        differs=("angle",),
        claims=(Claim(arm="one angle", metric="velocity_mse", says="worse", source="Table 0"),),
    )
"""
STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line(DPDStage):
    """The diffusion with a matrix in place of the network: everything else is the real one."""

    def init(self, key: jax.Array) -> dict[str, Any]:
        return {
            "model": {
                "dense": {"kernel": jax.random.normal(key, (self.model.latent_dim, self.model.latent_dim))}
            }
        }


def line(params: Any, _: Any, noisy: jax.Array, *__: Any) -> jax.Array:
    return noisy @ params["dense"]["kernel"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser, "velocity", line)


def base() -> TrainConfig:
    model = dataclasses.replace(dpd.TINY, frames=20, latent_dim=vae.TINY.latent_width, chunks=2)
    data = DataConfig(batch_size=2, window_tokens=20, threads=1)
    return TrainConfig(stage=Line(model=model), data=data, steps=STEPS)


def write_features(folder: Path, count: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    records = [
        {
            "meta": encode_json({"id": f"piece {i}"}),
            "semantic_tokens": rng.integers(0, 1024, 40).astype(np.int16),
            "latents": rng.normal(size=(40, vae.TINY.latent_width)).astype(np.float16),
            "prefix_tokens": rng.integers(0, 1024, (1, 1, 12)).astype(np.int16),
            "window_starts": np.zeros(1, np.int32),
            "text_prefix_tokens": np.zeros((0, 12), np.int16),
        }
        for i in range(count)
    ]
    folder.mkdir(parents=True)
    shard = write_shard(folder / shard_name("features", 0, 1), records)
    write_manifest(
        folder,
        ShardManifest(kind="features", settings={"hashes": {}}, versions={}, shard_count=1, shards=(shard,)),
    )
    return str(folder)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, releases: Path) -> dict[str, Any]:
    """What a study needs, in a folder of its own; the study is at options["study"]."""
    root = tmp_path_factory.mktemp("study")
    (root / "tiny.py").write_text(FILE)
    return {
        "study": str(root / "tiny.py"),
        "folder": (write_features(root / "audio", 5, 0),),
        "validation_folder": (write_features(root / "held_out", 4, 1),),
        "networks": str(releases / "tiny"),
        "runs": str(root / "runs"),
        "out": str(root / "out"),
    }


def test_study(options: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    # one arm alone, and a process that has to stop after the first step
    alone = AblateConfig(**options, arm=("base",), minutes=0.002)
    assert ablate(alone) is None
    (folder,) = Path(options["runs"]).iterdir()
    assert not files.is_done(folder, ("velocity",))
    assert 0 < files.last_step(folder) < STEPS
    assert ablate(dataclasses.replace(alone, minutes=0.0)) is None
    finished = (folder / "cost.json").stat().st_mtime_ns

    # the whole of it: what is done is not done again
    words = [word for name, value in options.items() if name != "study" for word in _words(name, value)]
    cli.run(["ablate", options["study"], *words])
    assert (folder / "cost.json").stat().st_mtime_ns == finished
    assert len(list(Path(options["runs"]).iterdir())) == 2
    assert not list(Path(options["out"]).glob("runs/*/checkpoints"))
    text = (Path(options["out"]) / "tiny.md").read_text()
    assert "melody ablate configs/ablations/tiny.py --folder study" in text
    assert str(Path(options["runs"]).parent) not in text
    assert "Table 0" in text
    assert "### Velocity MSE by angle" in text
    assert (Path(options["out"]) / "tiny.png").stat().st_size > 5_000

    # every step has its digests, equal in both arms but for the angles
    found = json.loads((Path(options["out"]) / "tiny.json").read_text())
    (pair,) = found["pairing"]["one angle"]
    assert pair["steps"] == STEPS
    assert set(pair["shared"]) == {"batch", "has_condition", "tokens", "prefix", "noise"}
    assert pair["different"] == ["angle"]
    first = found["comparisons"][0]
    runs = _runs(options)
    values = [files.results(runs[arm].kept)["velocity_mse"] for arm in ("one angle", "base")]
    assert values[0].shape == (4,)
    assert first["clips"]["low"] == pytest.approx(interval(values[0] - values[1]).low, rel=1e-4)
    assert first["seeds"]["low"] is None
    (by_angle,) = found["velocity_mse_by_angle"]["one angle"]
    assert np.mean(by_angle) == pytest.approx(values[0].mean(), rel=1e-5)
    capsys.readouterr()

    # what is kept is all that the report needs, and does not tell where this machine has it
    records = [run.kept / "config.json" for run in runs.values()]
    assert all(str(Path(options["runs"]).parent) not in record.read_text() for record in records)
    written = {path.name: path.read_bytes() for path in Path(options["out"]).iterdir() if path.is_file()}
    shutil.rmtree(options["runs"])
    assert ablate(AblateConfig(**options)) is not None
    assert {name: (Path(options["out"]) / name).read_bytes() for name in written} == written
    assert not list(Path(options["runs"]).glob("*"))

    # another default in the code is found out
    record = runs["base"].kept / "config.json"
    said = record.read_text()
    record.write_text(said.replace('"beta2": 0.99', '"beta2": 0.98'))
    with pytest.raises(UserError, match=r"was made when optimizer.beta2 was 0.98, it is 0.99 now"):
        ablate(AblateConfig(**options))
    record.write_text(said)

    # an arm that saw something else is found out
    kept = runs["one angle"].kept / files.STEPS
    steps = files.read_steps(kept.parent)
    steps["digest/noise"][1] += 1
    files.save_arrays(kept, steps)
    with pytest.raises(UserError, match=r"'one angle' is not paired with the base: noise differ"):
        ablate(AblateConfig(**options))


def _words(name: str, value: Any) -> list[str]:
    return [f"--{name}", *([value] if isinstance(value, str) else value)]


def _runs(options: dict[str, Any]) -> dict[str, Run]:
    config = AblateConfig(**options)
    return {run.arm: run for run in runs_of(study.load_study(config.study), config)}


def test_a_run_is_done_once(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr("melody_jax.ablation.ablate.is_done", lambda *_: False)
    monkeypatch.setattr(training, "carry_out", lambda config, folder, *_: started.append(folder) or True)
    monkeypatch.setattr("melody_jax.ablation.ablate._refuse_changed_defaults", lambda *_: None)
    monkeypatch.setattr("melody_jax.ablation.ablate.keep", lambda *_: None)
    taken = _runs(options)["base"].folder
    with files.claim(taken) as mine, files.claim(taken) as again:
        assert (mine, again) == (True, False)
        work(AblateConfig(**options))
    assert started == [_runs(options)["one angle"].folder]


def test_an_arm_that_diverges(options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = FILE.replace('"continuation_si_snri", "log_mel_l1", "frechet"', "")
    others = ', "beside wild": {}, "one angle": {"stage.model.chunks": 1}'
    wild = text.replace(
        '"one angle": {"stage.model.chunks": 1}', '"wild": {"optimizer.learning_rate": 1e38}' + others
    )
    (tmp_path / "wild.py").write_text(wild.replace("claims=(", 'against={"beside wild": "wild"}, claims=('))
    mine = dataclasses.replace(
        AblateConfig(**options), study=str(tmp_path / "wild.py"), out=str(tmp_path / "out")
    )
    report_file = ablate(mine)
    assert "wild, seed 5: after 2 steps the loss is" in capsys.readouterr().err
    assert report_file is not None
    told = report_file.read_text()
    assert "**wild** diverged with seed 5 after 2 steps: no comparison." in told
    assert "**beside wild** is compared with wild: no comparison." in told
    assert "**one angle** beside base:" in told
    assert "| wild | `optimizer.learning_rate` 1e+38 |" in told

    (tmp_path / "wild.py").write_text(wild.replace(others, "").replace('arm="one angle"', 'arm="wild"'))
    with pytest.raises(
        UserError, match="nothing is left to compare: wild diverged with seed 5 after 2 steps"
    ):
        ablate(mine)


def test_a_claim_dies_with_its_process(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from melody_jax.ablation.files import claim
with claim(pathlib.Path({str(tmp_path)!r})) as mine:
    assert mine
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    with files.claim(tmp_path) as mine:
        assert mine


def test_names_of_runs() -> None:
    one = base()
    name = study.run_name(one, {"training": ["a"]})
    elsewhere = dataclasses.replace(
        one, workdir="elsewhere", data=dataclasses.replace(one.data, folder=("x",))
    )
    assert study.run_name(elsewhere, {"training": ["a"]}) == name
    longer = dataclasses.replace(one, steps=9)
    wider = dataclasses.replace(one, stage=dataclasses.replace(one.stage, condition_dropout=0.2))
    others = [study.run_name(longer, {"training": ["a"]}), study.run_name(wider, {"training": ["a"]})]
    assert len({name, *others, study.run_name(one, {"training": ["b"]})}) == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": {"a": {}, "b": {"stage.model.chunk": 1}}}, "did you mean chunks"),
        ({"arms": {"a": {}}}, "two arms"),
        ({"base": 3}, "it must be a TrainConfig"),
        ({"claims": (study.Claim(arm="c", metric="x", says="worse", source=""),)}, "no such arm"),
    ],
)
def test_bad_studies(changes: dict[str, Any], said: str) -> None:
    arms = {"a": {}, "b": {"stage.model.chunks": 1}}
    values = {
        "title": "t",
        "question": "?",
        "base": base(),
        "arms": arms,
        "metrics": ("velocity_mse",),
    } | changes
    with pytest.raises(UserError, match=said):
        study.resolve(study.Study(**values), "b", 0)


def test_unknown_arm_and_missing_data(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="unknown arm 'wide'; the study has base, one angle"):
        ablate(AblateConfig(**options, arm=("wide",)))
    with pytest.raises(UserError, match="--validation_folder"):
        ablate(AblateConfig(study=options["study"]))
    with pytest.raises(UserError, match="say which study"):
        ablate(AblateConfig())


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_committed_studies(path: Path) -> None:
    found = study.load_study(path)
    for arm in found.arms:
        for seed in found.seeds:
            study.resolve(found, arm, seed)
    tree = ast.parse(path.read_text())
    (arms,) = (node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "arms")
    assert isinstance(arms, ast.Dict)
    assert max(value.end_lineno - value.lineno + 1 for value in arms.values) <= 20  # type: ignore[operator]
    assert len(path.read_text().splitlines()) <= 60


def test_sentences() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
    from melody_jax.ablation.statistics import compare

    open_question = compare(
        "a", "velocity_mse", [{"velocity_mse": x} for x in one], [{"velocity_mse": x} for x in other]
    )
    assert "settles nothing" in study_report.sentence(open_question)
    worse = compare(
        "a", "velocity_mse", [{"velocity_mse": x + 9} for x in one], [{"velocity_mse": x} for x in one]
    )
    assert study_report.sentence(worse).startswith("velocity MSE: worse, higher by 9")
    claim = study.Claim(arm="a", metric="velocity_mse", says="better", source="Table 5: 1 against 2")
    assert "disagrees with the paper" in study_report.hold_against(claim, worse)
    assert "settles nothing" in study_report.hold_against(claim, open_question)
    assert "so it is here" in study_report.hold_against(dataclasses.replace(claim, says="worse"), worse)


def test_digests_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no step in common"):
        paired_runs.compare_draws(tmp_path / "a", tmp_path / "b")
