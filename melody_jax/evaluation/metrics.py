"""All metrics of `melody evaluate`, from measured clips: distances, diversity, cycle consistency,
memorisation, signal.

Legend: N and M clips, E embedding width.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from melody_jax.errors import UserError
from melody_jax.evaluation.embed_clips import Rows
from melody_jax.evaluation.embedding import MuLan
from melody_jax.evaluation.fidelity import LONG_SILENCE
from melody_jax.evaluation.frechet import Moments, clip_distances, extrapolated, frechet_distance
from melody_jax.evaluation.intervals import Interval, mean_interval, set_interval
from melody_jax.evaluation.kernel import kernel_interval
from melody_jax.evaluation.npz import read_npz

BLOCK = 1024
"""Clips that are compared with the training set at a time."""


def read_moments(file: Path) -> Moments:
    """The moments of a .npz with "mu" (E,) and "sigma" (E, E). Raises `UserError` for any other content."""
    problem = 'not statistics of a reference, a .npz with "mu" (E,) and "sigma" (E, E)'
    arrays = read_npz(file, ("mu", "sigma"), problem)
    mean = arrays["mu"]
    covariance = arrays["sigma"]
    if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu":
        raise UserError(
            f'{file}: "mu" is {mean.dtype} and "sigma" {covariance.dtype}; they must be real numbers'
        )
    if mean.ndim != 1 or not mean.size or covariance.shape != (mean.size,) * 2:
        raise UserError(
            f'{file}: "mu" has shape {mean.shape} and "sigma" {covariance.shape}; it must be (E,) and (E, E)'
        )
    moments = Moments(mean.astype(np.float64), covariance.astype(np.float64))
    if not (np.isfinite(moments.mean).all() and np.isfinite(moments.covariance).all()):
        raise UserError(f'{file}: "mu" or "sigma" is not finite')
    eigenvalues = np.linalg.eigvalsh(moments.covariance)
    if eigenvalues.min(initial=0) < -1e-3 * eigenvalues.max(initial=0):
        raise UserError(f'{file}: "sigma" has negative eigenvalues and is no covariance')
    return moments


def distances(
    embeddings: np.ndarray, reference: Moments, real: np.ndarray | None, draws: int, seed: int
) -> dict[str, Any]:
    """Fréchet distance to the reference, its extrapolation to infinitely many clips, and the kernel distance.

    Args:
        embeddings: embeddings (N, E) of the clips.
        reference: moments of the reference.
        real: embeddings (M, E) of the reference, if available; without them there is no kernel distance.
        draws: bootstrap resamples per interval.
        seed: seed of the resamples.

    Raises:
        UserError: fewer than two clips, or embeddings of different widths.
    """
    values: dict[str, Any] = {"clips": len(embeddings), "reference": None if real is None else len(real)}
    if real is None:
        values["frechet"] = set_interval(
            lambda x: frechet_distance(x, reference), embeddings, draws=draws, seed=seed
        )
    else:
        values["frechet"] = set_interval(frechet_distance, embeddings, real, draws=draws, seed=seed)
        values["kernel"] = kernel_interval(embeddings, real, draws, seed)
    limit = extrapolated(embeddings, reference, seed)
    if limit is not None:
        sets = (embeddings,) if real is None else (embeddings, real)
        values["frechet_infinite"] = set_interval(
            partial(_extrapolated_value, reference, seed),
            *sets,
            draws=draws,
            seed=seed,
            title="extrapolated distance",
        )
        values["frechet_infinite_fit"] = limit.fit
    return values


def _extrapolated_value(
    reference: Moments, seed: int, embeddings: np.ndarray, real: np.ndarray | None = None
) -> float:
    """The extrapolated distance to the clips `real` (M, E) or, without them, to the moments of the reference."""
    limit = extrapolated(embeddings, reference if real is None else Moments.of(real), seed)
    return np.nan if limit is None else limit.value


def diversity(rows: Rows, prompts: Sequence[str], real: Rows | None, draws: int, seed: int) -> dict[str, Any]:
    """Mean cosine distance between pieces of different clips: of all clips, within a prompt, and of the reference.

    Args:
        rows: the pieces (N).
        prompts: prompt of each piece, N; "" if unknown.
        real: pieces of the reference, if available.
        draws: bootstrap resamples per interval.
        seed: seed of the resamples.

    Returns:
        "all", None if there is only one clip; "within_a_prompt" if a prompt has several clips, the mean over prompts;
        "reference" if it has several clips.
    """
    by_prompt: dict[str, list[int]] = {}
    for piece, prompt in enumerate(prompts):
        if prompt:
            by_prompt.setdefault(prompt, []).append(piece)
    within = np.asarray([_mean_distance(rows.embeddings[one], rows.clip[one]) for one in by_prompt.values()])
    within = within[~np.isnan(within)]
    values: dict[str, Any] = {"all": _distance_interval(rows, draws, seed)}
    if len(within):
        values["within_a_prompt"] = mean_interval(within, draws, seed)
    reference = None if real is None else _distance_interval(real, draws, seed)
    return values | ({} if reference is None else {"reference": reference})


def _distance_interval(rows: Rows, draws: int, seed: int) -> Interval | None:
    """`_mean_distance` of the pieces with its interval; None if there is only one clip."""
    if len(np.unique(rows.clip)) < 2:
        return None

    def distance(pieces: np.ndarray) -> float:
        return _mean_distance(rows.embeddings[pieces], rows.clip[pieces])

    return set_interval(distance, np.arange(len(rows)), draws=draws, seed=seed)


def cycle(
    embedding: MuLan, embeddings: np.ndarray, prompts: Sequence[str], draws: int, seed: int
) -> dict[str, Any]:
    """Cycle consistency: MuLan cosine between clips and their own prompts, and between clips and other prompts.

    There is no "others" if all prompts are equal.
    """
    cosines = embedding.cycle(embeddings, prompts)
    values: dict[str, Any] = {
        "encoder": embedding.name,
        "own": mean_interval(cosines, draws, seed),
        "per_piece": cosines.tolist(),
    }
    others = shuffled(prompts)
    if others is not None:
        other_cosines = embedding.cycle(embeddings, [prompts[i] for i in others])
        values["others"] = mean_interval(other_cosines, draws, seed)
    return values


def shuffled(labels: Sequence[str]) -> list[int] | None:
    """For every item the index of one with another label, as a control; None if all labels are equal.

    It is the first such item from half of the list's length on, in a circle.
    """
    if len(set(labels)) < 2:
        return None
    count = len(labels)
    change = [0] * count
    for i in reversed(range(2 * count)):  # the second round corrects what the first did not know of the end
        following = (i + 1) % count
        is_change = labels[following] != labels[i % count]
        change[i % count] = following if is_change else change[following]
    opposite = [(i + count // 2) % count for i in range(count)]
    return [j if labels[j] != label else change[j] for j, label in zip(opposite, labels, strict=True)]


def memorisation(
    embeddings: np.ndarray, training: np.ndarray, real: np.ndarray | None, draws: int, seed: int
) -> dict[str, Any]:
    """Cosines between each clip, and each held-out clip of the reference, and its nearest training clip.

    The mean of the training set is subtracted first, otherwise all cosines would be close to 1. "above" is
    the share of clips that are closer to a training clip than 99 % of the held-out clips are: 0.01 without
    memorisation.
    """
    cosines = nearest(embeddings, training)
    values: dict[str, Any] = {"clips": _summary(cosines), "per_piece": cosines.tolist()}
    if real is not None:
        held_out = nearest(real, training)
        values["held_out"] = _summary(held_out)
        values["above"] = mean_interval(cosines > np.percentile(held_out, 99), draws, seed)
    return values


def nearest(embeddings: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Cosine (N,) with the nearest of `training` (M, E), both centred on the mean of `training`."""
    mean = training.mean(axis=0)
    clips = _unit(embeddings - mean)
    unit_training = _unit(training - mean)
    maxima = []
    for i in range(0, len(clips), BLOCK):
        block = clips[i : i + BLOCK]
        cosines = [
            (block @ unit_training[j : j + BLOCK].T).max(axis=1) for j in range(0, len(training), BLOCK)
        ]
        maxima.append(np.max(cosines, axis=0))
    return np.concatenate(maxima)


def signals(columns: dict[str, np.ndarray], draws: int, seed: int) -> dict[str, Any]:
    """Means of the columns (`embed_clips.Rows.signal`), and the shares of clips with clipping, of clips that are half
    silent, and of clips that fall silent."""
    values: dict[str, Any] = {
        name: mean_interval(column[~np.isnan(column)], draws, seed) for name, column in columns.items()
    }
    values["clips_with_clipping"] = float(np.mean(columns["clipped"] > 0))
    values["clips_half_silent"] = float(np.mean(columns["silent"] > 0.5))
    values["clips_fallen_silent"] = float(np.mean(columns["longest_silence"] >= LONG_SILENCE))
    return values


def per_piece(rows: Rows, reference: Moments | None, result: dict[str, Any]) -> dict[str, np.ndarray]:
    """Columns (N,) for single pieces: distance, cycle, nearest training clip and signal metrics, where
    available.

    Moves the "per_piece" lists out of `result`.
    """
    columns = {"frechet": clip_distances(rows.embeddings, reference)} if reference else {}
    for name in ("cycle", "memorisation"):
        if name in result:
            columns[name] = np.asarray(result[name].pop("per_piece"))
    return columns | rows.signal


def _summary(cosines: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(cosines.mean()),
        "median": float(np.median(cosines)),
        "p99": float(np.percentile(cosines, 99)),
        "max": float(cosines.max()),
    }


def _mean_distance(embeddings: np.ndarray, clips: np.ndarray) -> float:
    """1 minus the mean cosine of all pairs of embeddings (N, E) of different clips (N,); nan without such a pair.

    The sum of the cosines of all pairs is the squared length of the sum of the unit vectors.
    """
    unit = _unit(embeddings.astype(np.float64))
    order = np.argsort(clips, kind="stable")
    _, starts, counts = np.unique(clips[order], return_index=True, return_counts=True)
    by_clip = np.add.reduceat(unit[order], starts)
    total = by_clip.sum(axis=0)
    pairs = len(clips) ** 2 - np.sum(counts**2)
    return float(1 - (total @ total - np.sum(by_clip**2)) / pairs) if pairs else np.nan


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
