"""The fact judges: genre, instruments, tempo, key, mode and metre of a clip (see `adherence`).

Genre and instruments are classified from log-mel statistics; key and mode from the chroma, of all pitches and
of the bass; metre from the onset autocorrelation at multiples of the beat; the tempo is librosa's. Every
result states the judges' accuracy on composed pieces that they were not trained on: a score of generated
clips means nothing without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from melody_jax.composer.facts import INSTRUMENT_NAMES
from melody_jax.composer.prompt_facts import PromptFacts
from melody_jax.control_tokens import KEYS
from melody_jax.errors import UserError
from melody_jax.evaluation.clip_features import ClipFeatures, is_same_tempo
from melody_jax.evaluation.group_judge import train_classifier
from melody_jax.evaluation.threads import single_blas_thread

if TYPE_CHECKING:  # scikit-learn comes with an extra
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline

FACTS = ("genre", "instruments", "tempo", "key", "mode", "metre")
LEAST_CLIPS = 100
"""Fewest clips to train on, and to measure the accuracy on."""
TEMPO_GUESSES = range(60, 180, 4)
"""Constant tempi, in bpm, among which `chance` finds the best."""


@dataclass(frozen=True, eq=False)
class FactJudges:
    """A `Judge` of all `FACTS`, with its accuracy and chance level on held-out composed pieces."""

    genre: "Pipeline"
    """From log-mel statistics to a genre."""
    instruments: "Pipeline"
    """From log-mel statistics to a mask over `INSTRUMENT_NAMES`."""
    tonic: "LogisticRegression"
    """From chroma rotated to a pitch class to whether that is the tonic."""
    mode: "LogisticRegression"
    """From chroma rotated to the tonic to "major" or "minor"."""
    metre: "Pipeline"
    """From onset autocorrelation and log tempo to a metre."""
    accuracy: dict[str, float] = field(default_factory=dict)
    """Fact -> mean score on held-out composed pieces."""
    chance: dict[str, float] = field(default_factory=dict)
    """Fact -> score of the one answer that is right most often."""

    def scores(self, features: ClipFeatures, facts: Sequence[PromptFacts]) -> dict[str, np.ndarray]:
        """Score (N,) for each of `FACTS`, 0 or 1; nan where the prompt does not mention the fact.

        Instruments score the share of the mentioned instruments that the clip has.
        """
        keys = self.keys(features)
        predicted = {
            "genre": self.genre.predict(features["statistics"]),
            "key": [KEYS[key] for key in keys],
            "mode": self.mode.predict(_rotate(features["chroma"], keys)),
            "metre": self.metre.predict(_metre_features(features)),
        }
        is_present = self.instruments.predict(features["statistics"])
        scores = {name: np.full(len(facts), np.nan) for name in FACTS}
        for i, fact in enumerate(facts):
            for name, values in predicted.items():
                if answer := _answer(fact, name):
                    scores[name][i] = values[i] == answer
            if fact.instruments:
                present = {name for name, is_on in zip(INSTRUMENT_NAMES, is_present[i], strict=True) if is_on}
                scores["instruments"][i] = _instrument_score(fact, present)
            if fact.tempo_bpm:
                scores["tempo"][i] = is_same_tempo(float(features["tempo"][i]), fact.tempo_bpm)
        return scores

    def keys(self, features: ClipFeatures) -> np.ndarray:
        """The most likely tonic of each clip, an index into `KEYS`, (N,)."""
        candidates = self.tonic.decision_function(_all_rotations(features["chroma"])).reshape(-1, 12)
        return np.argmax(candidates, axis=1)


def train_fact_judges(
    features: ClipFeatures, facts: Sequence[PromptFacts], is_held_out: np.ndarray, seed: int = 0
) -> FactJudges:
    """Trains judges on the clips outside the mask `is_held_out` (N,) and measures their accuracy on those
    inside.

    Raises:
        UserError: fewer than `LEAST_CLIPS` clips inside or outside of the mask.
    """
    check_size(len(is_held_out), int(is_held_out.sum()))
    train_features = {name: rows[~is_held_out] for name, rows in features.items()}
    train_facts = [fact for fact, is_out in zip(facts, is_held_out, strict=True) if not is_out]
    test_features = {name: rows[is_held_out] for name, rows in features.items()}
    test_facts = [fact for fact, is_out in zip(facts, is_held_out, strict=True) if is_out]
    with single_blas_thread():
        judges = _fit(train_features, train_facts, seed)
        scores = judges.scores(test_features, test_facts)
    for name, values in scores.items():
        judges.accuracy[name] = float(np.nanmean(values))
        judges.chance[name] = _chance(name, train_facts, test_facts)
    return judges


def check_size(total: int, held_out: int) -> None:
    """Raises `UserError` unless `LEAST_CLIPS` pieces are held out, and as many are not."""
    if min(held_out, total - held_out) < LEAST_CLIPS:
        raise UserError(
            f"{total} clips to train judges with, of which {held_out} are held out; it must be {LEAST_CLIPS} of either "
            f"kind: compose about {5 * LEAST_CLIPS}"
        )


def _fit(features: ClipFeatures, facts: Sequence[PromptFacts], seed: int) -> FactJudges:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    statistics = features["statistics"]
    keys = np.asarray([KEYS.index(str(fact.key)) for fact in facts])
    tonic = LogisticRegression(class_weight="balanced", max_iter=1000)
    tonic.fit(_all_rotations(features["chroma"]), (np.arange(12) == keys[:, None]).ravel())
    mode = LogisticRegression(class_weight="balanced", max_iter=1000)
    mode.fit(_rotate(features["chroma"], keys), [str(fact.mode_family) for fact in facts])
    has_metre = np.asarray([fact.metre is not None for fact in facts])
    metre = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    metre.fit(_metre_features(features)[has_metre], [fact.metre for fact in facts if fact.metre])
    network = MLPClassifier(
        (256,), alpha=1.0, early_stopping=True, n_iter_no_change=20, max_iter=400, random_state=seed
    )
    instruments = make_pipeline(StandardScaler(), network)
    instruments.fit(statistics, _instrument_mask(facts))
    genre = train_classifier(statistics, np.asarray([str(fact.genre) for fact in facts]), seed)
    return FactJudges(genre, instruments, tonic, mode, metre)


def _answer(fact: PromptFacts, name: str) -> str | None:
    """What a judge should say; of a mode the family."""
    return fact.mode_family if name == "mode" else getattr(fact, name)


def _instrument_mask(facts: Sequence[PromptFacts]) -> np.ndarray:
    """Mask (N, instruments) of the instruments that the facts mention."""
    return np.asarray(
        [[any(name in names for names in fact.instruments) for name in INSTRUMENT_NAMES] for fact in facts]
    )


def _instrument_score(fact: PromptFacts, present: set[str]) -> float:
    """Share of the mentioned instruments that are present."""
    return float(np.mean([bool(names & present) for names in fact.instruments]))


def _rotate(chroma: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Chroma (N, 2, 12) that starts at each clip's key (N,), flattened to (N, 24)."""
    pitch_classes = (np.arange(12) + keys[:, None]) % 12
    return np.take_along_axis(chroma, pitch_classes[:, None, :], axis=2).reshape(len(chroma), 24)


def _all_rotations(chroma: np.ndarray) -> np.ndarray:
    """Chroma (N, 2, 12) rotated to every pitch class, (N * 12, 24)."""
    rotations = [_rotate(chroma, np.full(len(chroma), key)) for key in range(12)]
    return np.stack(rotations, axis=1).reshape(-1, 24)


def _metre_features(features: ClipFeatures) -> np.ndarray:
    log_tempo = np.log(np.maximum(features["tempo"], 30))[:, None]
    return np.concatenate([features["repeats"], log_tempo], axis=1)


def _chance(name: str, train: Sequence[PromptFacts], test: Sequence[PromptFacts]) -> float:
    """Score on `test` of the constant answer that is right most often in `train`."""
    if name == "instruments":
        shares = _instrument_mask(train).mean(axis=0)
        usual = {name for name, share in zip(INSTRUMENT_NAMES, shares, strict=True) if share > 0.5}
        return float(np.mean([_instrument_score(fact, usual) for fact in test if fact.instruments]))
    if name == "tempo":
        train_tempi = [fact.tempo_bpm for fact in train if fact.tempo_bpm]
        hits = [_tempo_share(float(guess), train_tempi) for guess in TEMPO_GUESSES]
        best = float(TEMPO_GUESSES[int(np.argmax(hits))])
        return _tempo_share(best, [fact.tempo_bpm for fact in test if fact.tempo_bpm])
    answers = [answer for fact in train if (answer := _answer(fact, name))]
    best_answer = max(sorted(set(answers)), key=answers.count)
    return float(np.mean([answer == best_answer for fact in test if (answer := _answer(fact, name))]))


def _tempo_share(guess: float, tempi: Sequence[float]) -> float:
    """Share of the tempi that the guess matches."""
    return float(np.mean([is_same_tempo(guess, tempo) for tempo in tempi]))
