"""A study that only samples, on the tiny release: shared draws, scores, and results of finished runs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.musiclm import audiolm_networks, musiclm_networks
from helpers.tiny import tiny_networks

from melody_jax import release
from melody_jax.ablation import clip_scores, results, sampling, system_sampling
from melody_jax.ablation.ablate import ablate
from melody_jax.ablation.runs import AblateConfig, row_count
from melody_jax.ablation.study import Sampling
from melody_jax.evaluation import clip_features, composed_prompts
from melody_jax.evaluation.clip_features import is_same_tempo
from melody_jax.evaluation.group_judge import GroupJudge
from melody_jax.models import denoiser
from melody_jax.models.functional import count

FILE = """
from melody_jax.ablation.study import Sampling, Study

def study():
    return Study(
        title="Tiny", question="?", base=Sampling(model="tiny", steps=2, prompts=1), seeds=(1,),
        arms={"paper": {}, "uniform": {"schedule": "uniform"}},
        metrics=("text_similarity", "group_right", "tempo_right", "prompt_kernel_distance"),
    )
"""


SYSTEMS = """
from melody_jax.ablation.study import Study, SystemSampling

def study():
    return Study(
        title="Tiny systems", question="?", seeds=(1,),
        base=SystemSampling(model="melody", folder="{folder}", prompts=1, seconds=0.4, steps=1),
        arms={{
            "MeLoDy": {{}},
            "MusicLM": {{"system": "musiclm", "model": "musiclm", "steps": 5}},
            "AudioLM": {{"system": "audiolm", "model": "audiolm", "steps": 5}},
        }},
        metrics=("text_similarity", "group_right", "prompt_kernel_distance_log_mel"),
    )
"""


class ConstantClassifier:
    """Predicts the first group for every clip."""

    def predict(self, statistics: np.ndarray) -> np.ndarray:
        return np.zeros(len(statistics), int)


def test_study(tmp_path: Path, melody: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    described = []

    def piece(prompt: Any, number: int, seconds: float) -> np.ndarray:
        described.append(prompt)
        return np.random.default_rng(number).normal(size=round(24_000 * seconds)).astype(np.float32) / 10

    monkeypatch.setattr(sampling, "_cascade", lambda *_: melody)
    monkeypatch.setattr(clip_scores, "load_judge", lambda _: GroupJudge(ConstantClassifier()))
    monkeypatch.setattr(composed_prompts, "ground_truth", piece)
    first_tempo = next(
        p.tempo_bpm for p in composed_prompts.read_prompts(composed_prompts.PROMPTS) if p.rhythmic
    )
    monkeypatch.setattr(clip_features, "estimate_tempo", lambda _: first_tempo)
    (tmp_path / "tiny.py").write_text(FILE)
    config = AblateConfig(
        study=str(tmp_path / "tiny.py"), runs=str(tmp_path / "runs"), out=str(tmp_path / "out")
    )
    assert ablate(config) == tmp_path / "out" / "tiny.md"
    assert len(described) == len(composed_prompts.GROUPS)

    report = json.loads((tmp_path / "out" / "tiny.json").read_text())
    (pairing,) = report["pairing"]["uniform"]
    assert row_count(Sampling(prompts=1)) == 1  # what the progress bar counts to
    assert pairing == {"steps": 1, "equal": ["noise", "prefix", "tokens"], "different": []}
    assert report["costs"]["paper"]["nfe"] == 4
    right = {row["metric"]: row["value"] for row in report["comparisons"]}
    assert right["group_right"] == pytest.approx(1 / len(composed_prompts.GROUPS))
    rhythmic = [prompt for prompt in described if prompt.rhythmic]
    assert 0 < len(rhythmic) < len(described)
    equal = [prompt for prompt in rhythmic if is_same_tempo(first_tempo, prompt.tempo_bpm)]
    assert right["tempo_right"] == pytest.approx(len(equal) / len(rhythmic))

    runs = [result.arrays for result in results.read_results(config.results_file).values()]
    assert len({run["embeddings"].tobytes() for run in runs}) == len(runs) == 2
    assert len({run["true_embeddings"].tobytes() for run in runs}) == 1
    assert "| paper | " in (tmp_path / "out" / "tiny.md").read_text()

    # the run folders alone are enough for another report
    monkeypatch.setattr(sampling, "run_arm", None)
    assert ablate(dataclasses.replace(config, out=str(tmp_path / "again"))) is not None


def save_release(folder: Path, networks: dict[str, Any]) -> None:
    """Writes networks, name -> parameters and config, as a release."""
    for name, (params, config) in networks.items():
        release.save_network(folder, name, params, config, {})


def test_a_study_of_systems(tmp_path: Path, melody: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole clips of three releases, from the same prompts and seeds."""
    noise = np.random.default_rng(0).normal(size=9_600).astype(np.float32) / 10
    monkeypatch.setattr(system_sampling, "_embedding", lambda _: melody)
    monkeypatch.setattr(clip_scores, "load_judge", lambda _: GroupJudge(ConstantClassifier()))
    monkeypatch.setattr(composed_prompts, "ground_truth", lambda *_: noise)
    networks = musiclm_networks()
    save_release(tmp_path / "melody", tiny_networks())
    save_release(tmp_path / "musiclm", networks)
    save_release(tmp_path / "audiolm", audiolm_networks())
    (tmp_path / "systems.py").write_text(SYSTEMS.format(folder=tmp_path))
    config = AblateConfig(
        study=str(tmp_path / "systems.py"), runs=str(tmp_path / "runs"), out=str(tmp_path / "out")
    )
    assert ablate(config) == tmp_path / "out" / "systems.md"
    report = json.loads((tmp_path / "out" / "systems.json").read_text())
    costs = report["costs"]
    assert costs["MeLoDy"]["parameters"] == count(melody.params["lm"]) + count(melody.params["dpd"])
    assert costs["MusicLM"]["parameters"] == sum(
        count(networks[name][0]) for name in ("lm", "coarse", "fine")
    )
    assert costs["MeLoDy"]["nfe_clip"] == 80 + 1
    assert costs["MusicLM"]["nfe_clip"] == 16 + 2 * 16 + 16
    assert all(cost["nfe_30_seconds"] > cost["nfe_clip"] for cost in costs.values())
    diffusion = 2 * denoiser.flops(melody.configs["dpd"])
    assert diffusion < costs["MeLoDy"]["flops_second"] * melody.window_seconds < 20 * diffusion
    assert {pairing["equal"][0] for (pairing,) in report["pairing"].values()} == {"prompts"}
    runs = [result.arrays for result in results.read_results(config.results_file).values()]
    assert len({run["embeddings"].tobytes() for run in runs}) == 3
