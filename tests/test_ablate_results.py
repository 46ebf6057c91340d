"""Results of studies: what is stored of a run, changed defaults, and files that are damaged."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from melody_jax.ablation import ablate as ablating
from melody_jax.ablation import clip_scores, files, results, sampling
from melody_jax.ablation.ablate import ablate
from melody_jax.ablation.runs import AblateConfig
from melody_jax.ablation.study import Sampling, SystemSampling
from melody_jax.config import HostsConfig, load_config
from melody_jax.config_json import flat_values, to_dict
from melody_jax.errors import UserError
from melody_jax.evaluation import composed_prompts

ROOT = Path(__file__).parents[1]
STUDY = """
from melody_jax.ablation.study import Sampling, Study

def study():
    return Study(
        title="Tiny", question="?", base=Sampling(model="tiny", prompts=1), seeds=(1,),
        arms={"paper": {}, "uniform": {"schedule": "uniform"}}, metrics=("group_right",),
    )
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AblateConfig:
    """One arm of a study that samples, without networks."""

    def sample(_: Any, __: Any, metrics: Path, ___: bool) -> tuple[np.ndarray, dict[str, Any]]:
        metrics.write_text(json.dumps({"step": 1, "digest/noise": 7}) + "\n")
        return np.zeros((2, 8)), {"nfe": 1}

    monkeypatch.setattr(sampling, "identity", lambda _: {})
    monkeypatch.setattr(sampling, "_cascade", lambda *_: None)
    monkeypatch.setattr(sampling, "_sample", sample)
    monkeypatch.setattr(sampling, "score_clips", lambda *_: {"group_right": np.ones(2, np.float32)})
    (tmp_path / "tiny.py").write_text(STUDY)
    return AblateConfig(
        study=str(tmp_path / "tiny.py"),
        runs=str(tmp_path / "runs"),
        out=str(tmp_path / "out"),
        arm=("paper",),
    )


def test_a_sampling_run_keeps_its_config(config: AblateConfig) -> None:
    assert ablate(config) is None
    file = config.results_file
    ((name, result),) = results.read_results(file).items()
    assert result.config == {"config": to_dict(Sampling(model="tiny", prompts=1, seed=1))}
    content = file.read_text()
    file.write_text(content.replace('"top_k": 250', '"top_k": 251'))
    with pytest.raises(UserError, match=r"tiny\.json has a run with top_k 251, and the default is 250 now"):
        ablate(config)

    # the run folder has it too, before it is finished
    file.unlink()
    stored = Path(config.runs) / name / "config.json"
    (Path(config.runs) / name / "cost.json").unlink()
    stored.write_text(stored.read_text().replace('"top_p": 1.0', '"top_p": 0.9'))
    with pytest.raises(UserError, match=f"{name} has a run with top_p 0.9, and the default is 1.0 now"):
        ablate(config)

    # a result without a config is one of an earlier version
    old = json.loads(content)
    del old["runs"][name]["config"]
    file.write_text(json.dumps(old))
    assert ablate(config) is None
    assert results.read_results(file)[name].config is None


def test_folders_are_no_defaults() -> None:
    stored = {"config": to_dict(SystemSampling(folder="/home/someone/release"))}
    ablating._refuse_changed_defaults(SystemSampling(folder="release"), stored, "x")
    changed = dataclasses.replace(SystemSampling(folder="release"), seconds=11.0)
    with pytest.raises(UserError, match=r"x has a run with seconds 10.0, and the default is 11.0 now"):
        ablating._refuse_changed_defaults(changed, stored, "x")
    base = load_config("dpd_tiny")
    stage = dataclasses.replace(base.stage, mulan="/home/someone/release/mini")
    training = dataclasses.replace(base, stage=stage)
    ablating._refuse_changed_defaults(training, {"config": results.published_config(to_dict(training))}, "x")


def test_published_configs_do_not_reveal_this_machine() -> None:
    base = load_config("dpd_tiny")
    place = "/home/someone/music/mini"
    data = dataclasses.replace(
        base.data, folder=(place, place), validation_folder=(place,), networks=place, text_tokenizer=place
    )
    stage = dataclasses.replace(base.stage, mulan=place, tokenizer=place)
    hosts = HostsConfig(join=True, coordinator="someone.local:1234", count=1, index=0)
    config = dataclasses.replace(base, data=data, stage=stage, workdir=place, init_from=place, hosts=hosts)
    published = results.published_config(to_dict(config))
    assert "someone" not in json.dumps(published)
    assert published["data"]["folder"] == ["music/mini", "music/mini"]
    assert published["stage"]["mulan"] == published["init_from"] == "music/mini"
    assert published["optimizer"] == to_dict(base.optimizer)


def test_every_field_with_a_path_is_shortened() -> None:
    """A text that is empty by default names a file or folder, but for three fields."""
    configs = [load_config(path) for path in sorted((ROOT / "configs").glob("*.py"))]
    texts = {name for config in configs for name, value in flat_values(config) if value == ""}
    assert texts - {"lora.kernels", "hosts.coordinator", "watch.wandb_project"} <= set(results.PATHS)


def test_committed_results_are_readable() -> None:
    files = sorted((ROOT / "docs" / "studies" / "runs").glob("*.json"))
    assert files
    for file in files:
        assert results._encode_file(results.read_results(file)).encode() == file.read_bytes()


ARRAY = {"dtype": "float32", "shape": [1], "base64": "AACAPw=="}
RUN = {"arm": "a", "seed": 0, "steps": {"step": "x"}, "measures": {"velocity": {"mse": "x"}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "it is list, not dict"),
        ({"arrays": [], "runs": {}}, "arrays is list, not dict"),
        ({"arrays": {}}, "runs is NoneType, not dict"),
        ({"arrays": {"x": 1}, "runs": {}}, "array x is int"),
        ({"arrays": {"x": ARRAY | {"dtype": "O"}}, "runs": {}}, "an array of object"),
        ({"arrays": {"x": ARRAY | {"dtype": ["f4"]}}, "runs": {}}, "dtype is list, not str"),
        ({"arrays": {"x": ARRAY | {"shape": [10**13]}}, "runs": {}}, "in 4 bytes"),
        ({"arrays": {"x": ARRAY | {"shape": [-1]}}, "runs": {}}, "in 4 bytes"),
        ({"arrays": {"x": ARRAY | {"shape": "1"}}, "runs": {}}, "shape is str, not list"),
        ({"arrays": {"x": ARRAY | {"base64": "%"}}, "runs": {}}, "not a results file"),
        ({"arrays": {}, "runs": {"r": []}}, "run r is list"),
        ({"runs": {"r": RUN | {"seed": "0"}}}, "seed is str, not int"),
        ({"runs": {"r": RUN | {"diverged_after": True}}}, "diverged_after is bool, not int"),
        ({"runs": {"r": RUN | {"cost": {"steps": []}}}}, "cost is no object of numbers and texts"),
        ({"runs": {"r": RUN | {"config": {}}}}, "config is NoneType, not dict"),
        ({"runs": {"r": RUN | {"steps": {"step": "y"}}}}, "'y'"),
        ({"runs": {"r": RUN | {"steps": {}}}}, "steps are no columns of one length"),
        ({"runs": {"r": RUN | {"measures": {"velocity": []}}}}, "velocity is list, not dict"),
        ({"runs": {"r": RUN | {"other": 1}}}, "other"),
    ],
)
def test_damaged_results_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "tiny.json"
    content = {"arrays": {"x": ARRAY}} | content if isinstance(content, dict) else content
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tiny\.json: not a results file of a study \(") as error:
        results.read_results(file)
    assert message in str(error.value)
    file.write_text(json.dumps({"arrays": {"x": ARRAY}, "runs": {"r": RUN}}))
    assert results.read_results(file)["r"].arrays["mse"].tolist() == [1.0]


DIGEST = '{"step": 1, "digest/noise": 1, "loss": 1.0}\n'
HALF = '{"step": 1, "digest/noise": 0.5}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("diverged.json", "[]", "not a JSON object"),
        ("diverged.json", '{"steps": "3"}', 'must be {"steps": number of steps}'),
        ("diverged.json", "{}", "delete it to train the run again"),
        ("cost.json", '{"steps": [1]}', "not the cost of a run"),
        ("config.json", '{"config": []}', "not the description of a run"),
        ("velocity.safetensors", "damaged", "not a safetensors file"),
        ("metrics.jsonl", DIGEST.replace("noise", "angle") + DIGEST.replace("1,", "2,", 1), "is None"),
        ("metrics.jsonl", DIGEST.replace(": 1, ", ': "1", ').replace('"step": "1"', '"step": 1'), "is '1'"),
        ("metrics.jsonl", HALF, "digest/noise is 0.5; it must be a digest of 32 bits"),
        ("metrics.jsonl", DIGEST.replace("1.0", '"high"'), "a step or a loss is not a number"),
    ],
)
def test_damaged_run_folders_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name}") as error:
        results.read_folder(tmp_path, "a", 0)
    assert message in str(error.value)


def test_the_cache_of_described_pieces_knows_its_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = dict(list(clip_scores.select_prompts(1).items())[:2])
    monkeypatch.setattr(clip_scores, "select_prompts", lambda _: prompts)
    names = [clip_scores.described_file("0" * 64, 1, 5.0, tmp_path).name]
    number, prompt = next(iter(prompts.items()))
    prompts[number] = dataclasses.replace(prompt, text="another caption")
    names.append(clip_scores.described_file("0" * 64, 1, 5.0, tmp_path).name)
    prompts[number] = dataclasses.replace(prompt, seed=prompt.seed + 1)
    names.append(clip_scores.described_file("0" * 64, 1, 5.0, tmp_path).name)
    monkeypatch.setattr(composed_prompts, "VERSION", 99)
    file = clip_scores.described_file("0" * 64, 1, 5.0, tmp_path)
    assert len({*names, file.name}) == 4
    file.parent.mkdir()
    file.write_bytes(b"damaged")
    melody: Any = SimpleNamespace(hashes={"mulan": "0" * 64})
    with pytest.raises(UserError, match="damaged; delete it, and its pieces are embedded again"):
        clip_scores._described_pieces(melody, 1, 5.0, tmp_path)
    arrays = {
        "true_embeddings": np.ones((2, 3), np.float32),
        "true_log_mel": np.zeros((2, 4), np.float32),
    }
    files.save_arrays(file, arrays)
    described = clip_scores._described_pieces(melody, 1, 5.0, tmp_path)
    assert {name: array.shape for name, array in described.items()} == {
        "true_embeddings": (2, 3),
        "true_log_mel": (2, 4),
    }
