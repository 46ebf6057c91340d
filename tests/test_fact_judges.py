"""Features of synthetic sounds, and fact judges that learn synthetic facts."""

import numpy as np
import pytest

from melody_jax.composer.prompt_facts import PromptFacts
from melody_jax.control_tokens import KEYS
from melody_jax.errors import UserError
from melody_jax.evaluation import adherence, clip_features
from melody_jax.evaluation.clip_features import ClipFeatures
from melody_jax.evaluation.fact_judges import FACTS, train_fact_judges
from melody_jax.evaluation.group_judge import GroupJudge

TIMES = np.arange(5 * 24_000) / 24_000


def test_chroma_of_a_chord() -> None:
    hertz = np.asarray([261.63, 329.63, 392.0, 110.0])
    wave = 0.2 * np.sin(2 * np.pi * hertz[:, None] * TIMES).sum(axis=0)
    full, bass = clip_features.chroma(wave.astype(np.float32))
    assert set(np.argsort(full)[-4:]) == {KEYS.index(name) for name in ("C", "E", "G", "A")}
    assert np.argmax(bass) == KEYS.index("A")


def test_onset_autocorrelation_peaks_at_the_bar() -> None:
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 0.02, len(TIMES)).astype(np.float32)
    for beat in range(10):  # 120 bpm in three
        start = beat * 12_000
        wave[start : start + 1200] = rng.normal(0, 0.5 if beat % 3 == 0 else 0.05, 1200)
    strength = clip_features.onset_autocorrelation(wave, 120.0)
    by_lag = dict(zip(clip_features.BEATS, strength, strict=True))
    assert by_lag[3.0] > 2 * max(by_lag[2.0], by_lag[4.0])


def synthetic(count: int, rng: np.random.Generator) -> tuple[ClipFeatures, list[PromptFacts]]:
    """Clips with noisy features of their facts."""
    keys = rng.integers(0, 12, count)
    kinds = rng.integers(0, 2, count)
    statistics = rng.normal(size=(count, 20)).astype(np.float32)
    statistics[:, 0] += 6 * kinds
    chroma = rng.normal(0, 0.3, (count, 2, 12)).astype(np.float32)
    for i, (key, kind) in enumerate(zip(keys, kinds, strict=True)):
        for step in (0, 0, 7, 3 if kind else 4):
            chroma[i, :, (key + step) % 12] += 1.0
    repeats = rng.normal(0, 0.1, (count, len(clip_features.BEATS))).astype(np.float32)
    repeats[:, clip_features.BEATS.index(3.0)] += kinds
    features = {
        "statistics": statistics,
        "chroma": chroma,
        "repeats": repeats,
        "tempo": np.full(count, 120, np.float32),
    }
    facts = [
        PromptFacts(genre=("jazz", "techno")[kind], instruments=(frozenset({("piano", "flute")[kind]}),),
                    tempo_bpm=60.0, key=KEYS[key], mode=("major", "minor")[kind], metre=("4/4", "3/4")[kind])
        for key, kind in zip(keys, kinds, strict=True)
    ]  # fmt: skip
    return features, facts


def test_judges_learn_and_are_scored_on_held_out_clips() -> None:
    features, facts = synthetic(300, np.random.default_rng(1))
    judges = train_fact_judges(features, facts, np.arange(300) % 3 == 2)
    assert all(judges.accuracy[name] > 0.8 for name in FACTS), judges.accuracy
    assert all(judges.chance[name] < 0.7 for name in ("genre", "key", "mode", "metre")), judges.chance
    assert judges.chance["tempo"] == 1.0  # all pieces have one tempo
    first = {name: rows[:3] for name, rows in features.items()}
    assert all(np.isnan(scores).all() for scores in judges.scores(first, [PromptFacts()] * 3).values())
    wrong = [
        PromptFacts(genre="metal", key=fact.key, mode="major" if fact.mode == "minor" else "minor")
        for fact in facts
    ]
    scores = judges.scores(features, wrong)
    assert np.mean(scores["genre"]) == 0
    assert np.mean(scores["mode"]) < 0.1
    with pytest.raises(UserError, match="100 of either kind"):
        train_fact_judges(features, facts, np.arange(300) < 50)


class ConstantClassifier:
    """Predicts the first group for every clip."""

    def predict(self, statistics: np.ndarray) -> np.ndarray:
        return np.zeros(len(statistics), int)


def test_judges_share_one_interface() -> None:
    features, facts = synthetic(300, np.random.default_rng(1))
    fact_judges = train_fact_judges(features, facts, np.arange(300) % 3 == 2)
    summary = adherence.adherence(fact_judges, features, facts, seed=0)
    assert set(summary) == set(FACTS)
    assert summary["genre"]["right"].value > 0.8
    assert summary["genre"]["composed"] == fact_judges.accuracy["genre"]

    group_judge = GroupJudge(ConstantClassifier())
    prompts = [
        PromptFacts(group=name, tempo_bpm=60.0 if name == "jazz" else None) for name in ("solo piano", "jazz")
    ]
    first = {name: rows[:2] for name, rows in features.items()}
    summary = adherence.adherence(group_judge, first, prompts, seed=0)
    assert summary["group"]["right"].value == 0.5
    assert (summary["tempo"]["right"].value, summary["tempo"]["clips"]) == (1.0, 1)  # 120 bpm is twice 60 bpm
