"""Votes: written durably by the studio, and win rates of `melody evaluate --votes` against known ones."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from melody_jax import cli
from melody_jax.errors import UserError
from melody_jax.evaluation import report, votes
from melody_jax.evaluation.evaluate import evaluate
from melody_jax.evaluation.evaluate_config import EvaluateConfig
from melody_jax.evaluation.intervals import Interval, wilson_interval
from melody_jax.evaluation.vote_file import Vote, read_votes, vote_line
from melody_jax.sampling import notation
from melody_jax.sampling.request import Request
from melody_jax.studio.takes import Take
from melody_jax.studio.votes import VoteFile, differing, vote_between


def vote(choice: str = "a", number: int = 0, **differs: Any) -> Vote:
    return Vote(a=f"{number}a", b=f"{number}b", differs=differs, choice=choice, time=1.5)


def write(path: Path, lines: list[Vote]) -> Path:
    path.write_bytes(b"".join(map(vote_line, lines)))
    return path


def take(take_id: str, **changes: Any) -> Take:
    request = {name: changes.pop(name) for name in ("seed", "steps", "prompt") if name in changes}
    fields: dict[str, Any] = {
        "id": take_id,
        "parent": None,
        "kind": "prompt",
        "title": "",
        "settings": notation.request_to_json(Request(**{"prompt": "a"} | request)),
        "release": "mini",
        "system": "melody",
        "distilled": False,
        "model_hash": "1" * 16,
        "similarity": None,
        "seconds": 10.0,
        "sample_rate": 24_000,
        "channels": 1,
        "seconds_taken": 1.0,
        "created": 1.0,
        "file": f"{take_id}.flac",
        "bytes": 1,
        "sha256": "",
    }
    return Take(**fields | changes)


@pytest.mark.parametrize(("wins", "count"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (450, 1000)])
def test_wilson_s_interval_is_scipy_s(wins: int, count: int) -> None:
    expected = stats.binomtest(wins, count).proportion_ci(method="wilson")
    value, low, high = wilson_interval(wins, count)
    assert value == wins / count
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert 0 <= low <= value <= high <= 1


def test_wilson_s_interval_covers() -> None:
    """With a share of ties, which count as half, it covers the true rate at least as often as it says."""
    rng = np.random.default_rng(0)
    outcomes = rng.choice([0.0, 0.5, 1.0], p=[0.3, 0.3, 0.4], size=(2000, 25))
    intervals = [wilson_interval(scores.sum(), 25) for scores in outcomes]
    assert np.mean([low <= 0.55 <= high for _, low, high in intervals]) > 0.94


def test_win_rates_of_pairs_and_values(tmp_path: Path) -> None:
    lines = [
        *[vote("a", i, steps=[20, 5], seed=[1, 2]) for i in range(6)],
        *[vote("b", i, steps=[5, 20]) for i in range(3)],
        vote("tie", 9, steps=[5, 20]),
        *[vote("b", i, steps=[5, 100]) for i in range(4)],
        vote("a", 14, steps=[5, 20], guidance_scale=[2.5, 4.0]),
        vote("a", 15, seed=[1, 2]),
        vote("a", 16, prompt=["slow | cello", [{"text": "x", "audio": None, "weight": 1.0}]]),
    ]
    summary = votes.summarise(write(tmp_path / "votes.jsonl", lines))
    assert summary["votes"] == 17
    assert summary["ties"] == 1 / 17
    assert summary["first_clip"].value == pytest.approx(9.5 / 17)
    by_sides = {
        (json.dumps(pair["first"], sort_keys=True), json.dumps(pair["second"], sort_keys=True)): pair
        for pair in summary["pairs"]
    }
    assert len(by_sides) == 4  # the seed alone compares nothing
    steps = by_sides['{"steps": 5}', '{"steps": 20}']
    assert (steps["votes"], steps["ties"]) == (10, 1)
    assert steps["win_rate"] == wilson_interval(0.5, 10)
    assert by_sides['{"steps": 5}', '{"steps": 100}']["win_rate"].value == 0
    assert (
        by_sides['{"guidance_scale": 2.5, "steps": 5}', '{"guidance_scale": 4.0, "steps": 20}']["votes"] == 1
    )
    rows = [(row["value"], row["votes"], row["win_rate"].value) for row in summary["values"]]
    assert rows == [(100, 4, 1.0), (20, 10, 0.95), (5, 14, pytest.approx(0.5 / 14))]
    table = "\n".join(votes.tables(summary))
    assert "| steps 5 | steps 20 | 10 | 1 | 0.05 | 0.01 to 0.34 |" in table
    assert "slow \\| cello" in table
    assert all(line.count(" | ") in (0, 3, 5) for line in table.splitlines()[2:])


def test_a_vote_file_alone_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "votes.jsonl", [vote("a", i, steps=[20, 5]) for i in range(8)])
    out = tmp_path / "report"
    cli.run(["evaluate", "--votes", str(path), "--out", str(out)])
    result = json.loads((out / "evaluation.json").read_text())
    assert result["votes"]["pairs"][0]["win_rate"][0] == 0
    assert str(tmp_path) not in json.dumps(result)
    table = (out / "evaluation.md").read_text()
    assert "| steps 5 | steps 20 | 8 | 0 | 0.00 | 0.00 to 0.32 |" in table
    assert table in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.json", "evaluation.md"]


def test_options_without_effect_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "votes.jsonl", [vote(steps=[1, 2])])
    for name, value in (("reference", "corpus"), ("seed", 3), ("draws", 50)):
        with pytest.raises(UserError, match=f"--{name} has no effect on --votes without --clips or --model"):
            evaluate(EvaluateConfig(votes=str(path), out=str(tmp_path / "out"), **{name: value}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--clips is empty.*or --votes"):
        evaluate(EvaluateConfig(out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_report_on_clips_has_the_votes_too(tmp_path: Path) -> None:
    summary = votes.summarise(write(tmp_path / "votes.jsonl", [vote(steps=[1, 2])]))
    result = {
        "settings": {"seconds": 10.24},
        "embedding": "MuLan of mini",
        "sets": {},
        "diversity": {"all": None},
        "signal": {"clips_fallen_silent": Interval(0, 0, 0)},
    }
    assert "win rate" not in report.markdown(result)
    assert "| steps 1 | steps 2 | 1 |" in report.markdown(result | {"votes": summary})


BAD: dict[str, tuple[str, str]] = {
    "not JSON": ("{", "line 2: not JSON"),
    "not an object": ("[1]", "line 2: no vote"),
    "a field missing": ('{"a": "1", "b": "2", "choice": "a", "time": 1}', "line 2: no vote"),
    "a field too many": (
        '{"a": "1", "b": "2", "choice": "a", "time": 1, "differs": {}, "x": 1}',
        "line 2: no vote",
    ),
    "a choice": (
        '{"a": "1", "b": "2", "choice": "c", "time": 1, "differs": {}}',
        "choice is 'c'; it must be one of",
    ),
    "one clip": (
        '{"a": "1", "b": "1", "choice": "a", "time": 1, "differs": {}}',
        "a vote compares two clips",
    ),
    "an id": (
        '{"a": 1, "b": "1", "choice": "a", "time": 1, "differs": {}}',
        "they must be the ids of two clips",
    ),
    "a time": ('{"a": "1", "b": "2", "choice": "a", "time": "now", "differs": {}}', "time is 'now'"),
    "a value": ('{"a": "1", "b": "2", "choice": "a", "time": 1, "differs": {"steps": [1]}}', "differs is"),
    "settings": ('{"a": "1", "b": "2", "choice": "a", "time": 1, "differs": [1]}', "differs is"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lines_are_named(tmp_path: Path, case: str) -> None:
    line, message = BAD[case]
    path = tmp_path / "votes.jsonl"
    path.write_bytes(vote_line(vote()) + line.encode() + b"\n")
    with pytest.raises(UserError, match=message) as refused:
        read_votes(path)
    assert "\n" not in str(refused.value)


def test_no_votes(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    with pytest.raises(UserError, match="cannot be read"):
        votes.summarise(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="no votes"):
        votes.summarise(path)


def test_votes_of_many_threads_are_all_there(tmp_path: Path) -> None:
    file = VoteFile(tmp_path / "votes.jsonl")
    assert file.read() == []
    threads = [
        threading.Thread(
            target=lambda i=i: [file.append(vote("a", i, text=["ü\n\u2028" * 50, j])) for j in range(20)]
        )
        for i in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(file.read()) == 100
    assert {(one.a, one.differs["text"][1]) for one in file.read()} == {
        (f"{i}a", j) for i in range(5) for j in range(20)
    }


def test_a_torn_line_is_removed(tmp_path: Path) -> None:
    path = write(tmp_path / "votes.jsonl", [vote(), vote("b", 1)])
    with open(path, "ab") as file:
        file.write(b'{"a": "torn", "b')
    assert len(read_votes(path)) == 2
    votes_file = VoteFile(path)
    votes_file.append(vote("tie", 2))
    assert [one.choice for one in votes_file.read()] == ["a", "b", "tie"]


def test_a_vote_is_synced_or_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "votes.jsonl"
    file = VoteFile(path)
    file.append(vote())
    before = path.read_bytes()
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    file.append(vote("b", 1))
    assert len(synced) == 1

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path.write_bytes(before)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written"):
        file.append(vote("b", 1))
    assert path.read_bytes() == before


def test_what_differs_between_takes() -> None:
    first = take("0" * 16, seed=1, steps=5)
    second = take("1" * 16, seed=2, steps=20, release="small", model_hash="2" * 16)
    assert differing(first, second) == {
        "seed": (1, 2),
        "steps": (5, 20),
        "release": ("mini", "small"),
        "model_hash": ("1" * 16, "2" * 16),
    }
    cast = vote_between(first, second, "b")
    assert (cast.a, cast.b, cast.choice) == (first.id, second.id, "b")
    assert cast.time > 1.7e9
    (line,) = [json.loads(vote_line(cast))]
    assert line["differs"]["steps"] == [5, 20]
    assert differing(first, first) == {}
    with pytest.raises(UserError, match="choice is 'c'"):
        vote_between(first, second, "c")
    with pytest.raises(UserError, match="a vote compares two clips"):
        vote_between(first, first, "a")
