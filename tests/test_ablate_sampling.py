"""A study that only samples, on the tiny release: shared draws, scores, and results of finished runs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melody_jax.ablation import results, sampling
from melody_jax.ablation.ablate import ablate
from melody_jax.ablation.runs import AblateConfig
from melody_jax.ablation.study import Sampling
from melody_jax.evaluation import clip_features, composed_prompts
from melody_jax.evaluation.clip_features import is_same_tempo
from melody_jax.evaluation.group_judge import GroupJudge

FILE = """
from melody_jax.ablation.study import Sampling, Study

def study():
    return Study(
        title="Tiny", question="?", base=Sampling(model="tiny", steps=2, prompts=1), seeds=(1,),
        arms={"paper": {}, "uniform": {"schedule": "uniform"}},
        metrics=("text_similarity", "group_right", "tempo_right", "prompt_kernel_distance"),
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
    monkeypatch.setattr(sampling, "_judge", lambda _: GroupJudge(ConstantClassifier()))
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
    assert sampling.row_count(Sampling(prompts=1)) == 1  # what the progress bar counts to
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
