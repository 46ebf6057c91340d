"""A tiny study from the command line: runs, claims, resuming, pairing, the report; and what an arm costs in lines."""

import ast
import dataclasses
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from melody_jax import cli, roles
from melody_jax.ablation import files, paired_runs, results, study, study_report, training
from melody_jax.ablation.ablate import ablate, work
from melody_jax.ablation.runs import AblateConfig, Run, runs_of
from melody_jax.ablation.statistics import compare
from melody_jax.config import DataConfig, TrainConfig
from melody_jax.data.records import ShardManifest, encode_json, shard_name, write_manifest, write_shard
from melody_jax.errors import UserError
from melody_jax.evaluation.intervals import paired_t
from melody_jax.files import claim_folder
from melody_jax.models import denoiser, dpd, vae
from melody_jax.roles import Roles
from melody_jax.training.stages.dpd import DPDStage

ROOT = Path(__file__).parents[1]
STUDIES = sorted((ROOT / "configs" / "ablations").glob("*.py"))
FILE = """
from test_ablate import base
from melody_jax.ablation.study import Claim, Study

def study():
    return Study(
        title="Tiny", question="?", base=base(), seeds=(5,),
        arms={"base": {}, "one angle": {"stage.model.chunks": 1}},
        metrics=("velocity_mse", "continuation_si_snri", "log_mel_l1", "kernel_distance"),
        differs=("angle",),
        claims=(Claim(arm="one angle", metric="velocity_mse", says="worse", source="Table 0"),),
    )
"""
STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line(DPDStage):
    """The diffusion with a matrix in place of the network: everything else is the real one."""

    @property
    def roles(self) -> Roles:
        return {"model": {"dense": {"kernel": roles.COLUMN}}}

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
            "semantic_tokens": rng.integers(0, 64, 40).astype(np.int16),
            "latents": rng.normal(size=(40, vae.TINY.latent_width)).astype(np.float16),
            "prefix_tokens": rng.integers(0, 8, (1, 1, 12)).astype(np.int16),
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
    results_file = AblateConfig(**options).results_file
    one_arm = AblateConfig(**options, arm=("base",), minutes=0.002)
    assert ablate(one_arm) is None
    (folder,) = Path(options["runs"]).iterdir()
    assert not results.read_folder(folder, "base", 5).is_complete(("velocity",))
    assert not results_file.exists()
    assert 0 < files.last_step(folder) < STEPS
    assert ablate(dataclasses.replace(one_arm, minutes=0.0)) is None
    assert list(results.read_results(results_file)) == [folder.name]
    finished = (folder / "cost.json").stat().st_mtime_ns

    # the complete study: finished runs are not run again
    words = [word for name, value in options.items() if name != "study" for word in _words(name, value)]
    cli.run(["ablate", options["study"], *words])
    assert (folder / "cost.json").stat().st_mtime_ns == finished
    assert len(list(Path(options["runs"]).iterdir())) == 2
    assert "tiny.md, tiny.png and tiny.json" in capsys.readouterr().err
    text = (Path(options["out"]) / "tiny.md").read_text()
    assert f"melody ablate {files.short_path(options['study'])} --folder study" in text
    assert str(Path(options["runs"]).parent) not in text
    assert "Table 0" in text
    assert "### Velocity MSE by angle" in text
    assert (Path(options["out"]) / "tiny.png").stat().st_size > 5_000

    # every step has digests, equal in both arms except for the angles
    report = json.loads((Path(options["out"]) / "tiny.json").read_text())
    (pair,) = report["pairing"]["one angle"]
    assert pair["steps"] == STEPS
    assert set(pair["equal"]) == {"batch", "has_condition", "tokens", "prefix", "noise"}
    assert pair["different"] == ["angle"]
    first = report["comparisons"][0]
    runs = _runs(options)
    finished_runs = results.read_results(results_file)
    values = [finished_runs[runs[arm].name].arrays["velocity_mse"] for arm in ("one angle", "base")]
    assert values[0].shape == (4,)
    assert first["clips"]["low"] == pytest.approx(paired_t(values[0] - values[1]).low, rel=1e-4)
    assert first["seeds"]["low"] is None
    (by_angle,) = report["velocity_mse_by_angle"]["one angle"]
    assert np.mean(by_angle) == pytest.approx(values[0].mean(), rel=1e-5)
    capsys.readouterr()

    # the results file holds all that the report needs, and does not reveal this machine's folders
    assert str(Path(options["runs"]).parent) not in results_file.read_text()
    written = {path.name: path.read_bytes() for path in Path(options["out"]).iterdir() if path.is_file()}
    shutil.rmtree(options["runs"])
    assert ablate(AblateConfig(**options)) is not None
    assert {name: (Path(options["out"]) / name).read_bytes() for name in written} == written
    assert not list(Path(options["runs"]).glob("*"))

    # a changed default in the code is noticed
    content = results_file.read_text()
    results_file.write_text(content.replace('"beta2": 0.99', '"beta2": 0.98'))
    with pytest.raises(UserError, match=r"has a run with optimizer.beta2 0.98, and the default is 0.99 now"):
        ablate(AblateConfig(**options))
    results_file.write_text(content)

    # an arm with other draws is noticed
    run = runs["one angle"]
    steps = dict(finished_runs[run.name].steps)
    steps["digest/noise"] = steps["digest/noise"] + np.uint32([0, 1, 0])
    results.add_results(results_file, {run.name: dataclasses.replace(finished_runs[run.name], steps=steps)})
    with pytest.raises(UserError, match=r"'one angle' is not paired with its reference arm: noise differ"):
        ablate(AblateConfig(**options))
    results_file.write_text(content)


def test_studies_share_runs(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert ablate(AblateConfig(**options)) is not None
    monkeypatch.setattr(training, "run_arm", None)
    other = Path(options["study"]).with_name("other.py")
    other.write_text(FILE.replace('"base": {}', '"same": {}'))
    config = dataclasses.replace(AblateConfig(**options), study=str(other))
    assert ablate(config) == Path(options["out"]) / "other.md"
    arms = {result.arm for result in results.read_results(config.results_file).values()}
    assert arms == {"same", "one angle"}
    capsys.readouterr()


def _words(name: str, value: Any) -> list[str]:
    return [f"--{name}", *([value] if isinstance(value, str) else value)]


def _runs(options: dict[str, Any]) -> dict[str, Run]:
    config = AblateConfig(**options)
    return {run.arm: run for run in runs_of(study.load_study(config.study), config)}


def test_a_claimed_run_is_left_to_its_process(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    config = AblateConfig(**(options | {"out": options["out"] + "_claimed"}))
    monkeypatch.setattr(training, "run_arm", lambda config, folder, *_: started.append(folder) or False)
    monkeypatch.setattr("melody_jax.ablation.ablate._refuse_changed_defaults", lambda *_: None)
    monkeypatch.setattr(results.RunResult, "is_complete", lambda *_: False)
    claimed = _runs(options)["base"].folder
    with claim_folder(claimed) as is_mine, claim_folder(claimed) as is_mine_again:
        assert (is_mine, is_mine_again) == (True, False)
        work(config)
    assert started == [_runs(options)["one angle"].folder]


def _result(arm: str, **arrays: np.ndarray) -> results.RunResult:
    steps = {"step": np.arange(3, dtype=np.int32)}
    return results.RunResult(arm=arm, seed=0, cost={"steps": 3}, steps=steps, measures={"velocity": arrays})


def test_results_file(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "tiny.json"
    assert results.read_results(file) == {}
    odd = np.float32([np.nan, np.inf, -0.0, 1 / 3])
    results.add_results(file, {"a": _result("one", x=odd, y=np.float64([[1], [2]]))})
    results.add_results(file, {"b": _result("two", x=odd)})
    read = results.read_results(file)
    assert [read["a"].arm, read["b"].arm, read["a"].cost] == ["one", "two", {"steps": 3}]
    assert read["a"].arrays["x"].tobytes() == odd.tobytes()
    np.testing.assert_array_equal(read["a"].arrays["y"], np.float64([[1], [2]]))
    assert len(file.read_text().splitlines()) == 3 + 2 + 6  # three different arrays, two runs

    # another measure of a run is merged; the order in which runs come does not matter
    more = dataclasses.replace(read["a"], measures={"continuation": {"z": odd}})
    results.add_results(file, {"a": more})
    assert set(results.read_results(file)["a"].measures) == {"velocity", "continuation"}
    again = tmp_path / "again.json"
    for name in ("b", "a"):
        results.add_results(again, {name: results.read_results(file)[name]})
    assert again.read_bytes() == file.read_bytes()

    file.write_text("{}")
    with pytest.raises(UserError, match="not a results file"):
        results.read_results(file)


def test_processes_add_to_a_results_file(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(_add_runs, [(tmp_path / "tiny.json", name) for name in "ab"])
    assert len(results.read_results(tmp_path / "tiny.json")) == 20


def _add_runs(file: Path, name: str) -> None:
    for number in range(10):
        results.add_results(file, {f"{name}{number}": _result(name, x=np.arange(number, dtype=np.float32))})


def test_an_arm_that_diverges(options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = FILE.replace('"continuation_si_snri", "log_mel_l1", "kernel_distance"', "")
    others = ', "after wild": {}, "one angle": {"stage.model.chunks": 1}'
    wild = file.replace(
        '"one angle": {"stage.model.chunks": 1}', '"wild": {"optimizer.learning_rate": 1e38}' + others
    )
    (tmp_path / "wild.py").write_text(wild.replace("claims=(", 'against={"after wild": "wild"}, claims=('))
    config = dataclasses.replace(
        AblateConfig(**options), study=str(tmp_path / "wild.py"), out=str(tmp_path / "out")
    )
    report_file = ablate(config)
    assert "wild, seed 5: after 2 steps the loss is" in capsys.readouterr().err
    assert report_file is not None
    text = report_file.read_text()
    assert "**wild** diverged with seed 5 after 2 steps: no comparison." in text
    assert "**after wild** is compared with wild: no comparison." in text
    assert "**one angle** compared with base:" in text
    assert "| wild | `optimizer.learning_rate` 1e+38 |" in text

    (tmp_path / "wild.py").write_text(wild.replace(others, "").replace('arm="one angle"', 'arm="wild"'))
    with pytest.raises(
        UserError, match="nothing is left to compare: wild diverged with seed 5 after 2 steps"
    ):
        ablate(config)


def test_a_claim_dies_with_its_process(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from melody_jax.files import claim_folder
with claim_folder(pathlib.Path({str(tmp_path)!r})) as is_mine:
    assert is_mine
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    with claim_folder(tmp_path) as is_mine:
        assert is_mine


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
    ("changes", "message"),
    [
        ({"arms": {"a": {}, "b": {"stage.model.chunk": 1}}}, "did you mean chunks"),
        ({"arms": {"a": {}}}, "two arms"),
        ({"base": 3}, "it must be a TrainConfig"),
        ({"claims": (study.Claim(arm="c", metric="x", says="worse", source=""),)}, "no such arm"),
    ],
)
def test_bad_studies(changes: dict[str, Any], message: str) -> None:
    arms = {"a": {}, "b": {"stage.model.chunks": 1}}
    values = {
        "title": "t",
        "question": "?",
        "base": base(),
        "arms": arms,
        "metrics": ("velocity_mse",),
    } | changes
    with pytest.raises(UserError, match=message):
        study.resolve(study.Study(**values), "b", 0)


def test_unknown_arm_and_missing_data(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="unknown arm 'wide'; the study has base, one angle"):
        ablate(AblateConfig(**options, arm=("wide",)))
    with pytest.raises(UserError, match="--validation-folder"):
        ablate(AblateConfig(study=options["study"]))
    with pytest.raises(UserError, match="no study given"):
        ablate(AblateConfig())


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_committed_studies(path: Path) -> None:
    loaded = study.load_study(path)
    for arm in loaded.arms:
        for seed in loaded.seeds:
            study.resolve(loaded, arm, seed)
    tree = ast.parse(path.read_text())
    (arms,) = (node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "arms")
    assert isinstance(arms, ast.Dict)
    assert max((value.end_lineno or 0) - value.lineno + 1 for value in arms.values) <= 20
    assert len(path.read_text().splitlines()) <= 60


def test_the_printed_example_is_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "studies.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "width.py").write_text(code)
    loaded = study.load_study("width.py")
    widths = [study.resolve(loaded, arm, 0).stage.model.width for arm in loaded.arms]
    assert [str(width) for width in widths] == list(loaded.arms)


def test_sentences() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(3, 8))
    other = rng.normal(size=(3, 8))
    open_question = compare(
        "a", "velocity_mse", [{"velocity_mse": x} for x in one], [{"velocity_mse": x} for x in other]
    )
    assert "not significant" in study_report.sentence(open_question)
    worse = compare(
        "a", "velocity_mse", [{"velocity_mse": x + 9} for x in one], [{"velocity_mse": x} for x in one]
    )
    assert study_report.sentence(worse).startswith("velocity MSE: worse, higher by 9")
    claim = study.Claim(arm="a", metric="velocity_mse", says="better", source="Table 5: 1 against 2")
    assert "disagrees with the paper" in study_report.check_claim(claim, worse)
    assert "not significant" in study_report.check_claim(claim, open_question)
    assert "this study agrees" in study_report.check_claim(dataclasses.replace(claim, says="worse"), worse)


def test_digests_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no step in common"):
        paired_runs.compare_digests(files.read_steps(tmp_path / "a"), files.read_steps(tmp_path / "b"))
