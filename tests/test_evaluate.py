"""`melody evaluate` end to end, and each metric on sets with known values."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.sounds import sounds

from melody_jax.errors import UserError
from melody_jax.evaluation import evaluate as evaluating
from melody_jax.evaluation import metrics
from melody_jax.evaluation.evaluate import EvaluateConfig, evaluate
from melody_jax.evaluation.frechet import Moments

PROMPT = 'a <script>alert("waltz")</script> & more'


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "enable_compile_cache", lambda: None)  # conftest has its own


def config(tmp_path: Path, releases: Path, **changes: Any) -> EvaluateConfig:
    settings: dict[str, Any] = {
        "out": str(tmp_path / "out"),
        "cache": str(tmp_path / "cache"),
        "seconds": 2.0,
        "draws": 20,
        "embedding": "tiny",
        "folder": str(releases),
        "listen": 2,
    }
    return EvaluateConfig(**settings | changes)


def test_a_folder_against_another(tmp_path: Path, releases: Path) -> None:
    clips = sounds(tmp_path / "clips <b>", 4, 2.0)
    reference = sounds(tmp_path / "reference", 3, 4.0)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": f"{i:06d}", "prompt": PROMPT}) + "\n" for i in range(4)))
    options = {
        "clips": str(clips),
        "prompts": str(prompts),
        "reference": str(reference),
        "training": str(reference),
    }
    assert (
        evaluate(config(tmp_path, releases, **options, process=1, processes=2)) is None
    )  # one chunk, of process 0
    earlier = tmp_path / "out" / "pieces" / "000123.flac"
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"of a page with more pieces")
    evaluate(config(tmp_path, releases, **options))
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["sets"]["reference"]["pieces"] == 6
    assert len(result["sets"]["reference"]["sha256"]) == 64
    assert "MuLan of tiny" in result["embedding"]
    assert "MuLan of tiny" in result["cycle"]["encoder"]
    value, low, high = result["distance"]["frechet"]
    assert 0 <= low <= value <= high or low < 0 <= value <= high
    assert result["distance"]["reference"] == 6
    assert result["memorisation"]["held_out"]["mean"] == pytest.approx(
        1, abs=1e-5
    )  # it is the training set itself
    assert len(result["pieces"]) == 4
    assert {"clip", "start", "frechet", "cycle", "memorisation", "flatness"} <= set(result["pieces"][0])
    assert str(tmp_path) not in json.dumps(result)  # sets have names and hashes, not places
    table = (tmp_path / "out" / "evaluation.md").read_text()
    assert "Fréchet distance" in table
    assert f"reference@{result['sets']['reference']['sha256'][:12]}" in table
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in page
    assert "clips <b>" not in page
    linked = re.findall(r'src="([^"]+)"', page)
    assert len(linked) == 4
    assert {Path(path).name for path in linked} == {file.name for file in earlier.parent.iterdir()}
    assert all((tmp_path / "out" / path).is_file() and "//" not in path for path in linked)
    assert "http" not in page
    assert (tmp_path / "out" / "evaluation.png").stat().st_size > 1000


def test_a_model_with_prompts(tmp_path: Path, releases: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    cheap = {
        "seconds": 2.0,
        "steps": 1,
        "guidance_scale": 1.0,
        "lm_guidance_scale": 1.0,
    }  # as test_service compiles it
    lines = [{"prompt": prompt} | cheap for prompt in ("jazz", "techno")]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(16), sigma=np.eye(16))
    result = evaluate(
        config(
            tmp_path, releases, model="tiny", prompts=str(prompts), reference=str(tmp_path / "statistics.npz")
        )
    )
    assert result is not None
    assert result["sets"]["clips"]["clips"] == 2
    assert result["distance"]["frechet"].value > 0
    assert "kernel" not in result["distance"]
    assert "cycle" in result
    assert len(list((tmp_path / "out" / "clips").glob("*.flac"))) == 2
    prompts.write_text(json.dumps({"prompt": "jazz"}))
    with pytest.raises(
        UserError, match="clips: holds clips of other prompts, the first: 000001; use another"
    ):
        evaluate(config(tmp_path, releases, model="tiny", prompts=str(prompts)))


def test_memorisation_detects_copies() -> None:
    rng = np.random.default_rng(0)
    training = rng.normal(size=(300, 16))
    held_out = rng.normal(size=(200, 16))
    new = metrics.memorisation(rng.normal(size=(200, 16)), training, held_out)
    copied = metrics.memorisation(training[:50] + rng.normal(0, 0.01, (50, 16)), training, held_out)
    assert new["above"].low <= 0.03
    assert copied["above"].value == 1.0
    assert copied["clips"]["mean"] > 0.99 > new["clips"]["mean"]
    brute = (training - training.mean(0)) / np.linalg.norm(training - training.mean(0), axis=1, keepdims=True)
    point = (held_out[0] - training.mean(0)) / np.linalg.norm(held_out[0] - training.mean(0))
    assert metrics.nearest(held_out[:1], training)[0] == pytest.approx((brute @ point).max())


def test_diversity_within_and_between_prompts() -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(20, 8))
    close = np.repeat(points, 3, axis=0) + rng.normal(0, 0.05, (60, 8))
    prompts = [f"prompt {i}" for i in range(20) for _ in range(3)]
    result = metrics.diversity(close, prompts, points, seed=0)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    pairs = (unit @ unit.T)[np.triu_indices(20, 1)]
    assert result["reference"].value == pytest.approx(1 - pairs.mean())
    assert result["within_a_prompt"].high < 0.02 < result["all"].low


def test_distances_depend_on_the_number_of_clips() -> None:
    rng = np.random.default_rng(2)
    points = rng.normal(size=(80, 16))
    real = rng.normal(0.5, 1, size=(60, 16))
    result = metrics.distances(points, Moments.of(real), real, 20, 0)
    assert result["frechet_infinite"].value < result["frechet"].value  # the bias of finite sets is upwards
    assert set(result) >= {"frechet", "frechet_infinite_fit", "kernel"}
    assert "frechet_infinite" not in metrics.distances(points[:20], Moments.of(real), real, 20, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "--clips is empty"),
        ({"clips": "nowhere"}, "no such folder"),
        ({"clips": "there", "reference": "statistics.npz"}, "cannot be read|No such file"),
        ({"clips": "there", "embedding": "other"}, "no released model"),
        ({"seconds": 1.0}, "seconds is 1.0; it must be from 2 to 3,600"),
        ({"seconds": float("nan")}, "seconds is nan; it must be from 2 to 3,600"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"listen": -1}, "listen is -1; it must be at least 0"),
        ({"processes": 0}, "processes is 0; it must be at least 1"),
        (
            {"clips": "there", "out": "there/report"},
            "--out there/report lies in --clips there, where its players",
        ),
        ({"process": 2, "processes": 2}, "0 to 1"),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path, releases: Path, changes: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sounds(tmp_path / "there", 2, 2.0)
    with pytest.raises(UserError, match=message):
        evaluate(config(tmp_path, releases, **changes))
    assert not (tmp_path / "out" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        ([np.nan, 0], np.eye(2), "not finite"),
        ([0, 0], -np.eye(2), "negative eigenvalues"),
        ([0, 0], np.eye(3), r"\(E,\) and \(E, E\)"),
    ],
)
def test_what_is_no_covariance_is_refused(tmp_path: Path, mean: Any, covariance: Any, message: str) -> None:
    np.savez(tmp_path / "a.npz", mu=mean, sigma=covariance)
    with pytest.raises(UserError, match=message):
        metrics.read_moments(tmp_path / "a.npz")
