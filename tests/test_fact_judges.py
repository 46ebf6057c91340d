"""The judges: pitch classes and beats on sounds made for it, and that they learn what is there to be learnt."""

import numpy as np
import pytest

from melody_jax.composer.theory import KEYS
from melody_jax.errors import UserError
from melody_jax.evaluation import fact_judges
from melody_jax.evaluation.prompt_facts import Asked

TIMES = np.arange(5 * 24_000) / 24_000


def test_chroma_hears_pitch_classes() -> None:
    def tones(*hertz: float) -> np.ndarray:
        return sum(0.2 * np.sin(2 * np.pi * f * TIMES) for f in hertz).astype(np.float32)  # type: ignore[union-attr]

    heard = fact_judges.chroma(tones(261.63, 329.63, 392.0, 110.0))
    assert set(np.argsort(heard[0])[-4:]) == {KEYS.index(name) for name in ("C", "E", "G", "A")}
    assert np.argmax(heard[1]) == KEYS.index("A")


def test_repeats_hears_the_bar() -> None:
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 0.02, len(TIMES)).astype(np.float32)
    for beat in range(10):  # 120 bpm in three
        start = beat * 12_000
        wave[start : start + 1200] = rng.normal(0, 0.5 if beat % 3 == 0 else 0.05, 1200)
    found = dict(zip(fact_judges.BEATS, fact_judges.repeats(wave, 120.0), strict=True))
    assert found[3.0] > 2 * max(found[2.0], found[4.0])


def synthetic(count: int, rng: np.random.Generator) -> tuple[fact_judges.Heard, list[Asked]]:
    """Clips whose every fact shows in its features, for the most part."""
    keys, kinds = rng.integers(0, 12, count), rng.integers(0, 2, count)
    statistics = rng.normal(size=(count, 20)).astype(np.float32)
    statistics[:, 0] += 6 * kinds
    chroma = rng.normal(0, 0.3, (count, 2, 12)).astype(np.float32)
    for i, (key, kind) in enumerate(zip(keys, kinds, strict=True)):
        for step in (0, 0, 7, 3 if kind else 4):
            chroma[i, :, (key + step) % 12] += 1.0
    repeats = rng.normal(0, 0.1, (count, len(fact_judges.BEATS))).astype(np.float32)
    repeats[:, fact_judges.BEATS.index(3.0)] += kinds
    heard = {
        "statistics": statistics,
        "chroma": chroma,
        "repeats": repeats,
        "tempo": np.full(count, 120, np.float32),
    }
    truth = [
        Asked(genre=("jazz", "techno")[kind], instruments=(frozenset({("piano", "flute")[kind]}),), tempo_bpm=60.0,
              key=KEYS[key], mode=("major", "minor")[kind], metre=("4/4", "3/4")[kind])
        for key, kind in zip(keys, kinds, strict=True)
    ]  # fmt: skip
    return heard, truth


def test_judges_learn_and_are_scored_on_others() -> None:
    heard, truth = synthetic(300, np.random.default_rng(1))
    judges = fact_judges.train(heard, truth, np.arange(300) % 3 == 2)
    assert all(judges.accuracy[name] > 0.8 for name in fact_judges.FACTS), judges.accuracy
    assert all(judges.chance[name] < 0.7 for name in ("genre", "key", "mode", "metre")), judges.chance
    assert judges.chance["tempo"] == 1.0  # all pieces have one tempo
    nothing = fact_judges.right(judges, {name: rows[:3] for name, rows in heard.items()}, [Asked()] * 3)
    assert all(np.isnan(scores).all() for scores in nothing.values())
    wrong = [
        Asked(genre="metal", key=asked.key, mode="major" if asked.mode == "minor" else "minor")
        for asked in truth
    ]
    scores = fact_judges.right(judges, heard, wrong)
    assert np.mean(scores["genre"]) == 0
    assert np.mean(scores["mode"]) < 0.1
    with pytest.raises(UserError, match="100 of either kind"):
        fact_judges.train(heard, truth, np.arange(300) < 50)
