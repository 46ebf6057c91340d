"""`melody evaluate` end to end, and each metric on sets with known values."""

import dataclasses
import inspect
import itertools
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.sounds import sounds

from melody_jax.errors import UserError
from melody_jax.evaluation import adherence, embed_clips, metrics, report
from melody_jax.evaluation import evaluate as evaluating
from melody_jax.evaluation.clips import Clip, ClipSet
from melody_jax.evaluation.embed_clips import Rows
from melody_jax.evaluation.evaluate import evaluate
from melody_jax.evaluation.evaluate_config import EvaluateConfig
from melody_jax.evaluation.frechet import Moments
from melody_jax.evaluation.intervals import Interval

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


@pytest.mark.slow
def test_beam_measures_every_share(tmp_path: Path, releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers make and measure what one process does; the result is the same but for rounding."""
    pytest.importorskip("apache_beam")
    monkeypatch.setattr(embed_clips, "CHUNK", 1)
    prompts = tmp_path / "prompts.jsonl"
    cheap = {"seconds": 2.0, "steps": 1, "guidance_scale": 1.0, "lm_guidance_scale": 1.0}
    lines = [{"prompt": prompt} | cheap for prompt in ("jazz", "techno", "a waltz")]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    options = {"model": "tiny", "prompts": str(prompts)}
    alone = evaluate(config(tmp_path, releases, **options))
    measure_share = evaluating._measure_share

    def count(config: EvaluateConfig, process: int, inputs: Any) -> None:
        (tmp_path / f"measured-{process}").touch()
        measure_share(config, process, inputs)

    monkeypatch.setattr(evaluating, "_measure_share", count)
    beam = ("runner=DirectRunner",)
    shared = evaluate(config(tmp_path / "shared", releases, **options, processes=2, beam=beam))
    assert alone is not None
    assert shared is not None
    assert len(list((tmp_path / "shared" / "out" / "clips").glob("manifest-*-of-002.jsonl"))) == 2
    assert {path.name for path in tmp_path.glob("measured-*")} == {"measured-0", "measured-1"}
    cosines = [[piece["cycle"] for piece in result["pieces"]] for result in (alone, shared)]
    assert len(cosines[0]) == 3
    assert cosines[1] == pytest.approx(cosines[0], abs=1e-3)
    with pytest.raises(UserError, match="--process is 1; with --beam"):
        config(tmp_path, releases, process=1, processes=2, beam=("runner=DirectRunner",))


def test_statistics_of_a_reference_are_read_first(
    tmp_path: Path, releases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "make_clips", lambda _: pytest.fail("made clips first"))
    statistics = tmp_path / "statistics.npz"
    options = {"model": "tiny", "prompts": "prompts.jsonl", "reference": str(statistics)}
    np.savez(statistics, mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(
        UserError, match=r"statistics\.npz: statistics of embeddings of width 3; MuLan of tiny"
    ):
        evaluate(config(tmp_path, releases, **options))
    statistics.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"statistics\.npz: not statistics of a reference"):
        evaluate(config(tmp_path, releases, **options))
    with pytest.raises(UserError, match="nowhere: no such folder"):
        evaluate(config(tmp_path, releases, **options | {"reference": "", "training": "nowhere"}))


def test_memorisation_detects_copies() -> None:
    rng = np.random.default_rng(0)
    training = rng.normal(size=(300, 16))
    held_out = rng.normal(size=(200, 16))
    new = metrics.memorisation(rng.normal(size=(200, 16)), training, held_out, draws=200, seed=0)
    copies = training[:50] + rng.normal(0, 0.01, (50, 16))
    copied = metrics.memorisation(copies, training, held_out, draws=200, seed=0)
    assert new["above"].low <= 0.03
    assert copied["above"].value == 1.0
    assert copied["clips"]["mean"] > 0.99 > new["clips"]["mean"]
    brute = (training - training.mean(0)) / np.linalg.norm(training - training.mean(0), axis=1, keepdims=True)
    point = (held_out[0] - training.mean(0)) / np.linalg.norm(held_out[0] - training.mean(0))
    assert metrics.nearest(held_out[:1], training)[0] == pytest.approx((brute @ point).max())


def rows(embeddings: np.ndarray, clips: np.ndarray | None = None) -> Rows:
    count = len(embeddings)
    return Rows(np.arange(count) if clips is None else clips, np.zeros(count), embeddings, {}, {})


def test_diversity_within_and_between_prompts() -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(20, 8))
    close = np.repeat(points, 3, axis=0) + rng.normal(0, 0.05, (60, 8))
    prompts = [f"prompt {i}" for i in range(20) for _ in range(3)]
    result = metrics.diversity(rows(close), prompts, rows(points), draws=200, seed=0)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    pairs = (unit @ unit.T)[np.triu_indices(20, 1)]
    assert result["reference"].value == pytest.approx(1 - pairs.mean())
    assert result["within_a_prompt"].high < 0.02 < result["all"].low


def test_diversity_compares_different_clips() -> None:
    """Two clips of each of three prompts, each cut into four equal pieces: no piece is compared with its own clip."""
    rng = np.random.default_rng(2)
    points = rng.normal(size=(6, 8))
    clips = np.repeat(np.arange(6), 4)
    order = rng.permutation(24)
    pieces = rows(points[clips][order], clips[order])
    prompts = [f"prompt {clip // 2}" for clip in pieces.clip]
    result = metrics.diversity(pieces, prompts, pieces, draws=20, seed=0)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert result["all"].value == pytest.approx(1 - cosines[np.triu_indices(6, 1)].mean())
    assert result["reference"] == result["all"]
    within = 1 - cosines[[0, 2, 4], [1, 3, 5]].mean()
    assert result["within_a_prompt"].value == pytest.approx(within)
    alone = rows(points[:4], np.zeros(4, int))
    assert metrics.diversity(alone, ["a"] * 4, alone, draws=20, seed=0) == {"all": None}
    pair = metrics.diversity(rows(points[:2]), ["a", "b"], None, draws=20, seed=0)["all"]
    assert pair.low == pair.value == pair.high  # a resample of one clip has no pair


def test_distances_depend_on_the_number_of_clips() -> None:
    rng = np.random.default_rng(2)
    points = rng.normal(size=(80, 16))
    real = rng.normal(0.5, 1, size=(60, 16))
    result = metrics.distances(points, Moments.of(real), real, 20, 0)
    assert result["frechet_infinite"].value < result["frechet"].value  # the bias of finite sets is upwards
    assert set(result) >= {"frechet", "frechet_infinite_fit", "kernel"}
    fixed = metrics.distances(points, Moments.of(real), None, 20, 0)["frechet_infinite"]
    both = result["frechet_infinite"]
    assert fixed.value == pytest.approx(both.value)
    assert both.high - both.low > 1.2 * (fixed.high - fixed.low)  # the reference is a sample too
    assert "frechet_infinite" not in metrics.distances(points[:20], Moments.of(real), real, 20, 0)


def test_every_interval_has_the_requested_resamples(
    tmp_path: Path, releases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All metrics, with 23 resamples and the seed 5, whichever way they make their intervals."""
    settings = []

    def recorded(function: Callable[..., Interval], *values: Any, **named: Any) -> Interval:
        bound = inspect.signature(function).bind(*values, **named).arguments
        settings.append((bound.get("draws"), bound.get("seed")))
        return Interval(0.0, 0.0, 0.0)

    for module, name in itertools.product((metrics, adherence), ("mean", "set", "kernel")):
        if function := getattr(module, f"{name}_interval", None):
            monkeypatch.setattr(module, function.__name__, partial(recorded, function))
    rng = np.random.default_rng(0)
    signal = {name: rng.random(40) for name in ("clipped", "silent", "longest_silence")}
    pieces = dataclasses.replace(rows(rng.normal(size=(40, 4))), signal=signal)
    names = [Clip(name=str(i), read=lambda: pytest.fail("read"), prompt=f"jazz {i // 2}") for i in range(40)]
    clips = ClipSet(where="x", sha256="x", clips=names)
    scorer = SimpleNamespace(accuracy={}, chance={}, scores=lambda *_: {"genre": np.ones(40)})
    monkeypatch.setattr(evaluating, "train_judges", lambda *_: scorer)
    monkeypatch.setattr(evaluating, "MuLan", SimpleNamespace)
    embedding = SimpleNamespace(name="", cycle=lambda points, _: points[:, 0])
    roles = ("clips", "reference", "training", "judges")
    sets = dict.fromkeys(roles, clips)
    requested = config(tmp_path, releases, draws=23, seed=5)
    result = evaluating._result(requested, embedding, sets, dict.fromkeys(roles, pieces), None)
    assert {"distance", "diversity", "cycle", "memorisation", "adherence", "signal"} <= set(result)
    assert len(settings) == 3 + 3 + 2 + 1 + 1 + 3
    assert set(settings) == {(23, 5)}


def test_the_seed_and_the_resamples_change_adherence() -> None:
    scorer = SimpleNamespace(accuracy={}, chance={}, scores=lambda values, _: {"genre": values})
    values = np.random.default_rng(0).random(50)
    intervals = {
        adherence.adherence(scorer, values, [], seed, draws)["genre"]["right"]
        for seed, draws in ((0, 20), (1, 20), (0, 40))
    }
    assert len(intervals) == 3


def test_controls_have_other_prompts() -> None:
    labels = ["a", "b", "a", "b"]  # half of the list further on are the same prompts
    assert [labels[i] for i in metrics.shuffled(labels)] == ["b", "a", "b", "a"]
    assert metrics.shuffled(["a", "b", "c", "d"]) == [2, 3, 0, 1]
    assert metrics.shuffled(["a", "a"]) is None
    assert metrics.shuffled([]) is None
    rng = np.random.default_rng(0)
    for _ in range(200):
        drawn = rng.choice(list("abc"), rng.integers(1, 9), p=(0.8, 0.15, 0.05)).tolist()
        others = metrics.shuffled(drawn)
        assert (others is None) == (len(set(drawn)) == 1)
        assert others is None or all(drawn[j] != label for j, label in zip(others, drawn, strict=True))


def test_equal_prompts_have_no_control() -> None:
    embedding = SimpleNamespace(name="tiny", cycle=lambda points, prompts: np.arange(len(prompts)) / 10)
    result = metrics.cycle(embedding, np.zeros((3, 2)), ["a"] * 3, 20, 0)
    assert "others" not in result
    (row,) = report._distance_rows({"cycle": result})
    assert row[2] == "no comparison, as all prompts are equal"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "--clips is empty"),
        ({"clips": "there", "model": "tiny"}, "--clips there and --model tiny: either a folder or a model"),
        ({"clips": "there", "system": "musiclm"}, "--clips there and --system musiclm"),
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
