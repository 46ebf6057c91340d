"""The group judge: a classifier from log-mel statistics to one of 16 groups, and the tempo (see
`adherence`)."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from melody_jax.composer.prompt_facts import PromptFacts
from melody_jax.evaluation import clip_features
from melody_jax.evaluation.clip_features import ClipFeatures, is_same_tempo, log_mel_statistics
from melody_jax.evaluation.composed_prompts import GROUPS, SECONDS, pieces, render_with, rendering_hash
from melody_jax.evaluation.npz import DAMAGED, read_npz, write_npz

FIRST_SEED = 10_000_019
"""Seed of the first training clip; each of the others has 1,000 more than the one before."""

if TYPE_CHECKING:  # scikit-learn comes with an extra
    from sklearn.pipeline import Pipeline


@dataclass(frozen=True, eq=False)
class GroupJudge:
    """A `Judge` of "group" and "tempo". The score of true clips (`melody diagnose`) takes the place of an
    accuracy."""

    classifier: "Pipeline"
    """From log-mel statistics (N, F) to indices into `GROUPS`."""
    accuracy: dict[str, float] = field(default_factory=dict)
    """Empty."""
    chance: dict[str, float] = field(default_factory=dict)
    """Empty."""

    def scores(self, features: ClipFeatures, facts: Sequence[PromptFacts]) -> dict[str, np.ndarray]:
        """Whether group and tempo are correct, (N,) each, 0 or 1; nan where the prompt does not mention
        them."""
        names = [group.name for group in GROUPS]
        predicted = [names[index] for index in self.classifier.predict(features["statistics"])]
        groups = [_score(fact.group, name == fact.group) for name, fact in zip(predicted, facts, strict=True)]
        tempi = [
            np.nan if fact.tempo_bpm is None else float(is_same_tempo(tempo, fact.tempo_bpm))
            for tempo, fact in zip(features["tempo"], facts, strict=True)
        ]
        return {"group": np.asarray(groups, float), "tempo": np.asarray(tempi, float)}


def _score(fact: str | None, is_right: bool) -> float:
    return np.nan if fact is None else float(is_right)


def train_group_judge(cache: Path, count: int) -> GroupJudge:
    """A judge trained on `count` composed clips of each group; their statistics are cached in the folder
    `cache`."""
    return GroupJudge(train_classifier(*training_statistics(cache, count)))


def train_classifier(statistics: np.ndarray, labels: np.ndarray, seed: int = 0) -> "Pipeline":
    """A classifier from log-mel statistics (N, F) to labels (N,)."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier(
        (256,), alpha=1.0, early_stopping=True, n_iter_no_change=20, max_iter=400, random_state=seed
    )
    return make_pipeline(StandardScaler(), network).fit(statistics, labels)


def training_statistics(cache: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel statistics (N, F) of `count` composed clips of each group, train split, and their group indices
    (N,).

    Two processes render the clips once; the folder `cache` keeps the statistics. Raises `UserError` if they are
    damaged.
    """
    file = statistics_file(cache, count)
    labels = np.repeat(np.arange(len(GROUPS)), count)
    if not file.exists():
        jobs = [(int(group), number) for number, group in enumerate(labels)]
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            results = pool.map(_statistics_of_job, jobs, chunksize=8)
            rows = list(tqdm(results, total=len(jobs), desc="judge", unit="clip", disable=None))
        write_npz(file, {"features": np.stack(rows)})
    return read_npz(file, ("features",), DAMAGED)["features"], labels


def statistics_file(cache: Path, count: int) -> Path:
    """The file of `training_statistics`; a hash of all that they depend on is part of its name."""
    inputs = [
        rendering_hash("train"),
        clip_features.VERSION,
        [group.name for group in GROUPS],
        FIRST_SEED,
        SECONDS,
    ]
    key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
    return cache / f"features-{count}-{key}.npz"


def _statistics_of_job(job: tuple[int, int]) -> np.ndarray:
    group, number = job
    piece = next(pieces(GROUPS[group], "train", FIRST_SEED + 1_000 * number, SECONDS))
    return log_mel_statistics(render_with(piece, "train", number))
