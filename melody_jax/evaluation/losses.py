"""The summary of `melody diagnose`: scores of every stage, the loss of every network, and advice."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from melody_jax.evaluation.entry_stages import TRUTH, EntryStage
from melody_jax.evaluation.frechet import frechet_distance
from melody_jax.evaluation.intervals import Interval, mean_interval, set_interval

SCORES = ("group", "tempo", "cycle")


def summarise(
    scores: dict[str, dict[str, np.ndarray]],
    embeddings: dict[str, np.ndarray],
    groups: list[str],
    draws: int,
    stages: Sequence[EntryStage],
    seed: int = 0,
) -> dict[str, Any]:
    """The stages' scores, the loss of each network and the three largest losses; intervals are paired by
    prompt.

    Args:
        scores: stage, or "shuffled" if the prompts have several groups -> scores (N,) by name.
        embeddings: stage -> embeddings (N, E).
        groups: group of each prompt, N names.
        draws: bootstrap resamples per interval.
        stages: those of the system after the truth.
        seed: seed of the resamples.

    Returns:
        "stages", "by_group", "losses" and "largest". The "share" of a loss is relative to the score of the
        truth minus that of shuffled prompts; it is missing if that is not positive or there are none.
    """
    interval = partial(_interval, draws=draws, seed=seed)
    truth = embeddings[TRUTH]
    results = {
        stage: {name: interval(values) for name, values in columns.items() if not np.isnan(values).all()}
        for stage, columns in scores.items()
    }
    for stage in stages:
        pairs = np.stack([embeddings[stage.name], truth], 1)
        results[stage.name]["frechet"] = set_interval(_paired_distance, pairs, draws=draws, seed=seed)
    masks = {group: np.asarray(groups) == group for group in dict.fromkeys(groups)}
    by_group = {
        stage: {group: float(columns["group"][mask].mean()) for group, mask in masks.items()}
        for stage, columns in scores.items()
    }
    losses = []
    before = TRUTH
    for stage in stages:
        for name in SCORES:
            differences = scores[before][name] - scores[stage.name][name]
            if not np.isnan(differences).all():
                losses.append(_loss(stage, name, interval(differences), results))
        triples = np.stack([embeddings[before], embeddings[stage.name], truth], 1)
        added = set_interval(_added_distance, triples, draws=draws, seed=seed)
        losses.append({"network": stage.networks, "stage": stage.name, "score": "frechet", "lost": added})
        before = stage.name
    ranked = sorted((loss for loss in losses if "share" in loss), key=lambda loss: -loss["share"])
    return {"stages": results, "by_group": by_group, "losses": losses, "largest": ranked[:3]}


def _interval(values: np.ndarray, draws: int, seed: int) -> Interval:
    """The mean of the values that are not nan."""
    return mean_interval(values[~np.isnan(values)], draws, seed)


def _loss(
    stage: EntryStage, name: str, lost: Interval, results: dict[str, dict[str, Interval]]
) -> dict[str, Any]:
    """The drop of one score from one stage to the next."""
    loss = {"network": stage.networks, "stage": stage.name, "score": name, "lost": lost}
    floor = results.get("shuffled", {}).get(name)
    possible = results[TRUTH][name].value - floor.value if floor is not None else 0.0
    if possible > 0:
        loss["share"] = lost.value / possible
    return loss


def _paired_distance(pairs: np.ndarray) -> float:
    return frechet_distance(pairs[:, 0], pairs[:, 1])


def _added_distance(triples: np.ndarray) -> float:
    return frechet_distance(triples[:, 1], triples[:, 2]) - frechet_distance(triples[:, 0], triples[:, 2])


def markdown(result: dict[str, Any], stages: Sequence[EntryStage]) -> str:
    """The result as Markdown tables."""
    columns = (*SCORES, "frechet")
    lines = [
        f"{result['prompts']['count']} composed test prompts; {result['embedding']}; 95 % intervals.",
        "",
        "| entry stage | correct group | correct tempo | cycle consistency | Fréchet distance to the truth |",
        "| --- | --- | --- | --- | --- |",
    ]
    for stage, scores in result["stages"].items():
        lines.append(f"| {stage} | " + " | ".join(_cell(scores.get(name)) for name in columns) + " |")
    lines += ["", "Loss of each network, paired by prompt (a negative loss is a gain):", ""]
    lines += ["| network | correct group | correct tempo | cycle consistency | added Fréchet distance |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for stage in stages:
        losses = {loss["score"]: loss["lost"] for loss in result["losses"] if loss["stage"] == stage.name}
        lines.append(
            f"| {stage.networks} | " + " | ".join(_cell(losses.get(name)) for name in columns) + " |"
        )
    title = "Largest losses, relative to the truth's score minus that of shuffled prompts:"
    if "shuffled" not in result["stages"]:
        title = "All prompts have the same group, so no clips are judged against prompts of other groups."
    lines += ["", title, ""]
    advice = {stage.name: stage.advice for stage in stages}
    names = [TRUTH, *advice]
    for number, loss in enumerate(result["largest"], start=1):
        lines.append(
            f"{number}. {loss['network']}, {loss['score']}: {loss['share']:.0%}, {_cell(loss['lost'])}. "
            f"{_worst_groups(result, loss, names)}To try: {advice[loss['stage']]}."
        )
    columns = list(result["by_group"])
    lines += ["", "| correct group | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for group in result["by_group"]["truth"]:
        shares = " | ".join(f"{result['by_group'][stage][group]:.1f}" for stage in columns)
        lines.append(f"| {group} | {shares} |")
    return "\n".join(lines) + "\n"


def _cell(interval: Interval | None) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})" if interval is not None else ""


def _worst_groups(result: dict[str, Any], loss: dict[str, Any], names: Sequence[str]) -> str:
    """A sentence with the groups that lose most, if the loss is one of groups."""
    if loss["score"] != "group":
        return ""
    before = names[names.index(loss["stage"]) - 1]
    lost = {
        group: share - result["by_group"][loss["stage"]][group]
        for group, share in result["by_group"][before].items()
    }
    worst = [group for group in sorted(lost, key=lambda group: -lost[group])[:3] if lost[group] > 0]
    return f"It loses most on {', '.join(f'{group} (-{lost[group]:.1f})' for group in worst)}. "
