"""`melody evaluate --votes votes.jsonl`: win rates of settings in blind comparisons of two clips.

A tie is half a win for each side. Intervals are Wilson's (1927), which hold for few votes and for rates near 0 and 1;
with ties, whose variance is smaller than that of wins and losses, they are too wide rather than too narrow.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from melody_jax import __version__, files
from melody_jax.errors import UserError
from melody_jax.evaluation.intervals import wilson_interval
from melody_jax.evaluation.vote_file import Vote, read_votes

SEED = "seed"
"""Differs between clips that are compared, without being what is compared."""
WORDS = 60
"""Longest value in a table, characters."""
Side = tuple[tuple[str, str], ...]
"""(setting, value as JSON) of one side of a comparison."""


def summarise(path: Path) -> dict[str, Any]:
    """The votes of a file: their number, the share of ties, how often the first clip won, and the win rates.

    Returns:
        "pairs": for each pair of settings that was compared the win rate of "first" over "second";
        "values": for each setting with more than two values the win rate of each against all others, from the votes in
        which nothing but it and the seed differs; "first_clip": the rate of the clip that came first, 0.5 if its place
        does not matter.

    Raises:
        UserError: the file is missing or damaged, or has no votes.
    """
    votes = read_votes(path)
    if not votes:
        raise UserError(f"{path}: no votes")
    return {
        "name": path.name,
        "sha256": files.file_hash(path),
        "votes": len(votes),
        "ties": sum(vote.choice == "tie" for vote in votes) / len(votes),
        "first_clip": _rate([_score(vote) for vote in votes]),
        "pairs": _pairs(votes),
        "values": _values(votes),
    }


def evaluate_alone(config: Any) -> dict[str, Any]:
    """Writes the summary of `config.votes` into the folder `config.out`, as evaluation.json and .md, and prints it.

    Returns the content of evaluation.json. Raises `UserError` for other options of the `EvaluateConfig`, as
    `summarise`, and if it cannot be written.
    """
    for field in dataclasses.fields(config):
        if field.name not in ("votes", "out") and getattr(config, field.name) != field.default:
            raise UserError(
                f"--{field.name.replace('_', '-')} has no effect on --votes without --clips or --model; leave it out"
            )
    out = Path(config.out)
    files.check_folder(out)
    result = {"version": __version__, "votes": summarise(Path(config.votes))}
    text = "\n".join(tables(result["votes"])) + "\n"
    files.make_folder(out)
    files.write_json(out / "evaluation.json", result)
    files.write_bytes(out / "evaluation.md", text.encode())
    print(text)
    print(f"Wrote {out / 'evaluation.json'} and .md", file=sys.stderr)
    return result


def _score(vote: Vote) -> float:
    """1 if clip a is the better one, 0 if b is, 0.5 for a tie."""
    return {"a": 1.0, "b": 0.0, "tie": 0.5}[vote.choice]


def _rate(scores: list[float]) -> Any:
    return wilson_interval(sum(scores), len(scores))


def _sides(vote: Vote) -> tuple[Side, Side]:
    """What each clip of a vote stands for: the settings that differ, without the seed if others do."""
    names = sorted(vote.differs.keys() - {SEED})
    first, second = (
        tuple(
            (name, json.dumps(vote.differs[name][place], ensure_ascii=False, sort_keys=True))
            for name in names
        )
        for place in (0, 1)
    )
    return first, second


def _sort_key(side: Side) -> list[tuple[float, str]]:
    """Numbers in their order, then texts."""
    keys = []
    for _, text in side:
        value = json.loads(text)
        is_number = isinstance(value, int | float)
        keys.append((float(value) if is_number else float("inf"), text))
    return keys


def _pairs(votes: list[Vote]) -> list[dict[str, Any]]:
    """The win rate of each pair of sides; votes in which only the seed differs compare nothing."""
    scores: dict[tuple[Side, Side], list[float]] = {}
    for vote in votes:
        first, second = _sides(vote)
        if first == second:
            continue
        score = _score(vote)
        if _sort_key(second) < _sort_key(first):
            first, second = second, first
            score = 1 - score
        scores.setdefault((first, second), []).append(score)
    return [
        {
            "first": {name: json.loads(value) for name, value in first},
            "second": {name: json.loads(value) for name, value in second},
            "votes": len(results),
            "ties": results.count(0.5),
            "win_rate": _rate(results),
        }
        for (first, second), results in sorted(scores.items(), key=lambda item: -len(item[1]))
    ]


def _values(votes: list[Vote]) -> list[dict[str, Any]]:
    """The win rate of each value of the settings that alone differ and have more than two values."""
    scores: dict[str, dict[str, list[float]]] = {}
    for vote in votes:
        first, second = _sides(vote)
        if len(first) != 1 or first == second:
            continue
        (name, value), (_, other) = first[0], second[0]
        by_value = scores.setdefault(name, {})
        by_value.setdefault(value, []).append(_score(vote))
        by_value.setdefault(other, []).append(1 - _score(vote))
    return [
        {"setting": name, "value": json.loads(value), "votes": len(results), "win_rate": _rate(results)}
        for name, by_value in sorted(scores.items())
        if len(by_value) > 2
        for value, results in sorted(by_value.items(), key=lambda item: -sum(item[1]) / len(item[1]))
    ]


def tables(summary: dict[str, Any]) -> list[str]:
    """The lines of the Markdown tables of a summary."""
    first = summary["first_clip"]
    lines = [
        f"Votes: {summary['name']}, sha256 {summary['sha256'][:16]}. {summary['votes']} votes, {summary['ties']:.0%} "
        f"ties; the first clip wins {first.value:.2f} ({first.low:.2f} to {first.high:.2f}). Ties are half wins; 95 % "
        "intervals.",
    ]
    if summary["pairs"]:
        lines += [
            "",
            "| this | against | votes | ties | win rate | 95 % interval |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {_described(pair['first'])} | {_described(pair['second'])} | {pair['votes']} | {pair['ties']} | "
            f"{_numbers(pair['win_rate'])} |"
            for pair in summary["pairs"]
        ]
    if summary["values"]:
        lines += [
            "",
            "| value | votes | win rate against all others | 95 % interval |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {_described({row['setting']: row['value']})} | {row['votes']} | {_numbers(row['win_rate'])} |"
            for row in summary["values"]
        ]
    return lines


def _numbers(interval: Any) -> str:
    return f"{interval.value:.2f} | {interval.low:.2f} to {interval.high:.2f}"


def _described(settings: dict[str, Any]) -> str:
    """Settings in a cell of a table."""
    texts = [f"{name} {_text(value)}" for name, value in settings.items()]
    return ", ".join(texts).replace("|", "\\|")


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= WORDS else f"{text[:WORDS]}..."
