"""A study that only samples, on the tiny release: what arms share, what is judged, and that finished runs are kept."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from melody_jax.ablation import files, sampling
from melody_jax.ablation.ablate import AblateConfig, ablate
from melody_jax.ablation.study import Sampling
from melody_jax.evaluation import adherence, group_judge

FILE = """
from melody_jax.ablation.study import Sampling, Study

def study():
    return Study(
        title="Tiny", question="?", base=Sampling(model="tiny", steps=2, prompts=1), seeds=(1,),
        arms={"paper": {}, "uniform": {"schedule": "uniform"}},
        metrics=("text_similarity", "group_right", "tempo_right", "prompt_frechet"),
    )
"""


class Judge:
    """Hears the first group in everything."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        return np.zeros(len(features), int)


def test_study(tmp_path: Path, melody: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    described = []

    def piece(prompt: Any, number: int, samples: int) -> np.ndarray:
        described.append(prompt)
        return np.random.default_rng(number).normal(size=samples).astype(np.float32) / 10

    monkeypatch.setattr(sampling, "_cascade", lambda *_: melody)
    monkeypatch.setattr(sampling, "_judge", lambda _: Judge())
    monkeypatch.setattr(adherence, "ground_truth", piece)
    tempos = []  # of every clip with a beat, arm by arm; the first of each arm is right
    monkeypatch.setattr(
        group_judge, "tempo_matches", lambda _, tempo: tempos.append(tempo) or tempo == tempos[0]
    )
    monkeypatch.setattr(sampling, "PROMPTS", Path(__file__).parents[1] / sampling.PROMPTS)
    (tmp_path / "tiny.py").write_text(FILE)
    config = AblateConfig(
        study=str(tmp_path / "tiny.py"), runs=str(tmp_path / "runs"), out=str(tmp_path / "out")
    )
    assert ablate(config) == tmp_path / "out" / "tiny.md"
    assert len(described) == len(adherence.GROUPS)

    found = json.loads((tmp_path / "out" / "tiny.json").read_text())
    (pairing,) = found["pairing"]["uniform"]
    assert sampling.steps(Sampling(prompts=1)) == 1  # what the progress bar counts to
    assert pairing == {"steps": 1, "shared": ["noise", "prefix", "tokens"], "different": []}
    assert found["costs"]["paper"]["passes"] == 4
    right = {row["metric"]: row["value"] for row in found["comparisons"]}
    assert right["group_right"] == pytest.approx(1 / len(adherence.GROUPS))
    rhythmic = [prompt for prompt in described if prompt.rhythmic]
    assert 0 < len(rhythmic) < len(described)
    assert right["tempo_right"] == pytest.approx(1 / len(rhythmic))

    runs = [
        files.results(path)
        for path in sorted((tmp_path / "runs").glob("*/"))
        if (path / "cost.json").is_file()
    ]
    assert len({run["embeddings"].tobytes() for run in runs}) == len(runs) == 2
    assert len({run["true_embeddings"].tobytes() for run in runs}) == 1
    assert "| paper | " in (tmp_path / "out" / "tiny.md").read_text()

    # a report alone is made anew from what is there
    monkeypatch.setattr(sampling, "carry_out", None)
    assert ablate(dataclasses.replace(config, out=str(tmp_path / "again"))) is not None
