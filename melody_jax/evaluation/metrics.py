"""What rows of measured clips amount to: every figure of `melody evaluate`, as [value, low, high] where it has one.

N and M clips, E embedding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from melody_jax.errors import UserError
from melody_jax.evaluation import fact_judges, intervals
from melody_jax.evaluation.embed_clips import Rows
from melody_jax.evaluation.embedding import MuLan
from melody_jax.evaluation.frechet import Moments, clip_distances, extrapolated, frechet_distance, in_parts
from melody_jax.evaluation.kernel import kernel_interval
from melody_jax.evaluation.prompt_facts import Asked

BLOCK = 1024
"""Clips that are compared with the training set at a time."""


def read_moments(file: Path) -> Moments:
    """The reference of a .npz that holds "mu" (E,) and "sigma" (E, E). Raises `UserError` for anything else."""
    try:
        with np.load(file, allow_pickle=False) as there:
            moments = Moments(0, there["mu"].astype(np.float64), there["sigma"].astype(np.float64))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, EOFError):
        raise UserError(
            f'{file}: not statistics of a reference, a .npz with "mu" (E,) and "sigma" (E, E)'
        ) from None
    if moments.mean.ndim != 1 or moments.covariance.shape != (moments.mean.size,) * 2:
        raise UserError(
            f'{file}: "mu" {moments.mean.shape} and "sigma" {moments.covariance.shape} do not belong together'
        )
    return moments


def distances(
    points: np.ndarray, reference: Moments, real: np.ndarray | None, draws: int, seed: int
) -> dict[str, Any]:
    """Fréchet distance, its extrapolation and kernel distance; of the reference as `real` (M, E) too, if it is known.

    Raises `UserError` for under two clips, or embeddings of unlike width.
    """
    mine = in_parts(points)
    found: dict[str, Any] = {"clips": len(points), "reference": len(real) if real is not None else None}
    if real is None:
        found["frechet"] = intervals.of_sets(
            lambda x: frechet_distance(x, reference), points, draws=draws, seed=seed
        )
    else:
        found["frechet"] = intervals.of_sets(frechet_distance, points, real, draws=draws, seed=seed)
        found["kernel"] = kernel_interval(points, real, draws, seed)
    assert np.isclose(found["frechet"].value, frechet_distance(mine, reference), rtol=1e-6, atol=1e-9)
    limit = extrapolated(points, reference, seed)
    if limit is not None:
        rng, values = np.random.default_rng(seed), []
        for _ in range(max(20, draws // 10)):
            again = extrapolated(points[rng.integers(0, len(points), len(points))], reference, seed)
            values.append(again.value if again else np.nan)
        found["frechet_infinite"] = intervals.shifted(limit.value, values)
        found["frechet_infinite_fit"] = limit.fit
    return found


def diversity(
    points: np.ndarray, prompts: Sequence[str], real: np.ndarray | None, seed: int
) -> dict[str, Any]:
    """Mean cosine distance between different clips: of all, of those of one prompt, and of the reference."""
    groups = [
        np.flatnonzero([one == prompt for one in prompts]) for prompt in dict.fromkeys(prompts) if prompt
    ]
    groups = [rows for rows in groups if len(rows) > 1]
    found: dict[str, Any] = {"all": intervals.of_sets(_apart, points, seed=seed) if len(points) > 1 else None}
    if groups:
        found["within_a_prompt"] = intervals.of_mean(
            np.asarray([_apart(points[rows]) for rows in groups]), seed=seed
        )
    if real is not None:
        found["reference"] = intervals.of_sets(_apart, real, seed=seed)
    return found


def cycle(embedding: MuLan, points: np.ndarray, prompts: Sequence[str], seed: int) -> dict[str, Any]:
    """MuLan's cosine between clips and their prompts, and between clips and the prompts of other clips."""
    half = len(prompts) // 2
    others = [*prompts[half:], *prompts[:half]]
    own = embedding.cycle(points, prompts)
    return {
        "encoder": embedding.name,
        "own": intervals.of_mean(own, seed=seed),
        "others": intervals.of_mean(embedding.cycle(points, others), seed=seed),
        "per_piece": own.tolist(),
    }


def memorisation(points: np.ndarray, training: np.ndarray, real: np.ndarray | None) -> dict[str, Any]:
    """How like its nearest training clip each clip is, and each held-out clip of the reference: cosines.

    The training set's mean is taken out first, or all cosines would be near 1. `above` is the share of clips nearer to
    a training clip than 99 of 100 held-out ones are: 0.01 is what no memory gives.
    """
    near = nearest(points, training)
    found: dict[str, Any] = {"clips": _spread(near), "per_piece": near.tolist()}
    if real is not None:
        held_out = nearest(real, training)
        above = near > np.percentile(held_out, 99)
        found |= {"held_out": _spread(held_out), "above": intervals.of_mean(above)}
    return found


def nearest(points: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Cosine (N,) with the nearest of `training` (M, E), both without the mean of `training`."""
    mean = training.mean(axis=0)
    points, training = _unit(points - mean), _unit(training - mean)
    blocks = [points[i : i + BLOCK] for i in range(0, len(points), BLOCK)]
    return np.concatenate([np.max([(x @ training[j : j + BLOCK].T).max(axis=1) for j in
                                   range(0, len(training), BLOCK)], axis=0) for x in blocks])  # fmt: skip


def adherence(
    heard: fact_judges.Heard, truth: Sequence[Asked], judges: fact_judges.Judges, seed: int
) -> dict[str, Any]:
    """Of each fact that is asked for: how often it is heard, beside what the judge is worth on composed music."""
    found = {}
    for name, scores in fact_judges.right(judges, heard, truth).items():
        there = scores[~np.isnan(scores)]
        if len(there):
            found[name] = {"right": intervals.of_mean(there, seed=seed), "clips": len(there),
                           "composed": judges.accuracy[name], "chance": judges.chance[name]}  # fmt: skip
    return found


def signals(figures: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Means of `signal.figures`, and shares of clips with any clipping, or more than half silent."""
    found: dict[str, Any] = {name: intervals.of_mean(values, seed=seed) for name, values in figures.items()}
    found["clips_with_clipping"] = float(np.mean(figures["clipped"] > 0))
    return found | {"clips_half_silent": float(np.mean(figures["silent"] > 0.5))}


def per_piece(rows: Rows, reference: Moments | None, result: dict[str, Any]) -> dict[str, np.ndarray]:
    """(N,) columns: distance, cycle and nearest training clip where they are known, and the signal's figures.

    Those known of each piece move here from `result`.
    """
    columns = {"frechet": clip_distances(rows.points, reference)} if reference else {}
    for name in ("cycle", "memorisation"):
        if name in result:
            columns[name] = np.asarray(result[name].pop("per_piece"))
    return columns | rows.figures


def _spread(cosines: np.ndarray) -> dict[str, float]:
    found = {"mean": cosines.mean(), "median": np.median(cosines), "p99": np.percentile(cosines, 99)}
    return {name: float(value) for name, value in found.items()} | {"max": float(cosines.max())}


def _apart(points: np.ndarray) -> float:
    """1 - the mean cosine of all pairs, from the length of the sum of unit vectors."""
    total = np.sum(_unit(points.astype(np.float64)), axis=0)
    return float(1 - (total @ total - len(points)) / (len(points) * (len(points) - 1)))


def _unit(points: np.ndarray) -> np.ndarray:
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
