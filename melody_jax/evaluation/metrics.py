"""All metrics of `melody evaluate`, from measured clips: distances, diversity, cycle consistency,
memorisation, signal.

Legend: N and M clips, E embedding width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from melody_jax.errors import UserError
from melody_jax.evaluation.embed_clips import Rows
from melody_jax.evaluation.embedding import MuLan
from melody_jax.evaluation.fidelity import LONG_SILENCE
from melody_jax.evaluation.frechet import Moments, clip_distances, extrapolated, frechet_distance, in_parts
from melody_jax.evaluation.intervals import centred_interval, mean_interval, set_interval
from melody_jax.evaluation.kernel import kernel_interval

BLOCK = 1024
"""Clips that are compared with the training set at a time."""


def read_moments(file: Path) -> Moments:
    """The moments of a .npz with "mu" (E,) and "sigma" (E, E). Raises `UserError` for any other content."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            moments = Moments(0, arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, EOFError):
        raise UserError(
            f'{file}: not statistics of a reference, a .npz with "mu" (E,) and "sigma" (E, E)'
        ) from None
    if moments.mean.ndim != 1 or moments.covariance.shape != (moments.mean.size,) * 2:
        raise UserError(
            f'{file}: "mu" has shape {moments.mean.shape} and "sigma" {moments.covariance.shape}; '
            "it must be (E,) and (E, E)"
        )
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
    expected = frechet_distance(in_parts(embeddings), reference)
    assert np.isclose(values["frechet"].value, expected, rtol=1e-6, atol=1e-9)
    limit = extrapolated(embeddings, reference, seed)
    if limit is not None:
        rng = np.random.default_rng(seed)
        resampled = []
        for _ in range(max(20, draws // 10)):
            rows = rng.integers(0, len(embeddings), len(embeddings))
            extrapolation = extrapolated(embeddings[rows], reference, seed)
            resampled.append(extrapolation.value if extrapolation else np.nan)
        values["frechet_infinite"] = centred_interval(limit.value, resampled)
        values["frechet_infinite_fit"] = limit.fit
    return values


def diversity(
    embeddings: np.ndarray, prompts: Sequence[str], real: np.ndarray | None, seed: int
) -> dict[str, Any]:
    """Mean cosine distance between different clips: of all clips, within a prompt, and of the reference."""
    by_prompt = [
        np.flatnonzero([one == prompt for one in prompts]) for prompt in dict.fromkeys(prompts) if prompt
    ]
    repeated = [rows for rows in by_prompt if len(rows) > 1]
    has_pairs = len(embeddings) > 1
    values: dict[str, Any] = {
        "all": set_interval(_mean_distance, embeddings, seed=seed) if has_pairs else None
    }
    if repeated:
        within = np.asarray([_mean_distance(embeddings[rows]) for rows in repeated])
        values["within_a_prompt"] = mean_interval(within, seed=seed)
    if real is not None:
        values["reference"] = set_interval(_mean_distance, real, seed=seed)
    return values


def cycle(embedding: MuLan, embeddings: np.ndarray, prompts: Sequence[str], seed: int) -> dict[str, Any]:
    """Cycle consistency: MuLan cosine between clips and their own prompts, and the prompts of other clips."""
    half = len(prompts) // 2
    other_prompts = [*prompts[half:], *prompts[:half]]
    cosines = embedding.cycle(embeddings, prompts)
    return {
        "encoder": embedding.name,
        "own": mean_interval(cosines, seed=seed),
        "others": mean_interval(embedding.cycle(embeddings, other_prompts), seed=seed),
        "per_piece": cosines.tolist(),
    }


def memorisation(embeddings: np.ndarray, training: np.ndarray, real: np.ndarray | None) -> dict[str, Any]:
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
        values["above"] = mean_interval(cosines > np.percentile(held_out, 99))
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


def signals(columns: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Means of the columns (`embed_clips.Rows.signal`), and the shares of clips with clipping, of clips that are half
    silent, and of clips that fall silent."""
    values: dict[str, Any] = {
        name: mean_interval(column[~np.isnan(column)], seed=seed) for name, column in columns.items()
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


def _mean_distance(embeddings: np.ndarray) -> float:
    """1 minus the mean cosine of all pairs, from the length of the sum of unit vectors."""
    total = np.sum(_unit(embeddings.astype(np.float64)), axis=0)
    pairs = len(embeddings) * (len(embeddings) - 1)
    return float(1 - (total @ total - len(embeddings)) / pairs)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
