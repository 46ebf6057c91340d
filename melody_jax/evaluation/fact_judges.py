"""What a clip is heard to be: genre, instruments, tempo, key, mode and metre, by judges trained on composed audio.

Nothing is shared with MuLan or the semantic tokenizer (see `judge.py`). Genre and instruments come from log-mel
statistics; key and mode from which pitch classes sound, all of them and in the bass; metre from how the onsets repeat
at multiples of the beat; the tempo is librosa's beat tracker's. How often each is right on composed pieces that no
judge was trained on is part of every result: no score on generated clips can be read without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from melody_jax import audio, spectral
from melody_jax.composer.facts import INSTRUMENT_NAMES
from melody_jax.composer.theory import KEYS
from melody_jax.errors import UserError
from melody_jax.evaluation import group_judge
from melody_jax.evaluation.prompt_facts import Asked

FACTS = ("genre", "instruments", "tempo", "key", "mode", "metre")
BEATS = (0.25, 1 / 3, 0.5, 2 / 3, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0)
"""Lags, in beats, at which onsets may repeat."""
TEMPO_TOLERANCE = 0.08
"""Relative; its double and its half count as right too."""
_FFT = 8192

Heard = dict[str, np.ndarray]
"""What the judges need of N clips: "statistics" (N, F), "chroma" (N, 2, 12), "repeats" (N, lags), "tempo" (N,) bpm."""


def listen(wave: np.ndarray) -> Heard:
    """Of one clip float32 (T,) at 24 kHz, at least 2 s: the rows of `Heard`."""
    tempo = group_judge.tempo(wave)
    return {
        "statistics": group_judge.log_mel_statistics(wave),
        "chroma": chroma(wave),
        "repeats": repeats(wave, tempo),
        "tempo": np.float32(tempo),  # type: ignore[dict-item]
    }


def chroma(wave: np.ndarray) -> np.ndarray:
    """How much of each pitch class, C first, sounds in 55 to 2000 Hz and in its bass to 220 Hz: float32 (2, 12)."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (0, _FFT)), _FFT)[:: _FFT // 2]
    loud = np.abs(np.fft.rfft(frames * np.hanning(_FFT).astype(np.float32), axis=1)) ** 0.5
    hertz = np.fft.rfftfreq(_FFT, 1 / audio.SAMPLE_RATE)
    pitch = np.rint(12 * np.log2(np.maximum(hertz, 1) / 440)).astype(int) + 9
    rows = []
    for highest in (2000, 220):
        kept = (hertz >= 55) & (hertz <= highest)
        row = np.bincount(pitch[kept] % 12, loud.mean(axis=0)[kept], 12) / np.bincount(
            pitch[kept] % 12, minlength=12
        )
        rows.append((row - row.mean()) / (row.std() + 1e-6))
    return np.asarray(rows, np.float32)


def repeats(wave: np.ndarray, tempo_bpm: float) -> np.ndarray:
    """Autocorrelation of the onset strength at `BEATS` of the tempo, float32 (len(BEATS),)."""
    level = np.asarray(spectral.log_mel(jnp.asarray(wave[None]), n_mels=group_judge.BANDS))[
        0
    ]  # 100 frames a second
    level = np.maximum(level, level.max() - 9.0)
    onsets = np.maximum(np.diff(level, axis=0), 0).mean(axis=1)
    onsets = onsets - onsets.mean()
    spectrum = np.abs(np.fft.rfft(onsets, 2 * len(onsets))) ** 2
    same = np.fft.irfft(spectrum)[: len(onsets)]
    lags = np.asarray(BEATS) * 6000 / max(tempo_bpm, 30.0)
    return np.interp(lags, np.arange(len(same)), same / max(same[0], 1e-9), right=0.0).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Judges:
    """Trained judges, and `accuracy` and `chance` of each fact on composed pieces that none was trained on.

    `chance` is the score of always giving the answer that is right most often.
    """

    genre: Pipeline
    instruments: Pipeline
    tonic: LogisticRegression
    mode: LogisticRegression
    metre: Pipeline
    accuracy: dict[str, float]
    chance: dict[str, float]


@threadpool_limits.wrap(1, "blas")  # small matrices: with threads it takes longer
def train(heard: Heard, truth: Sequence[Asked], held_out: np.ndarray, seed: int = 0) -> Judges:
    """Judges of the clips that are not `held_out`, a mask (N,); their accuracy is that on those that are.

    Raises `UserError` for under 100 clips of either kind.
    """
    if min(held_out.sum(), (~held_out).sum()) < 100:
        raise UserError(
            f"{len(held_out)} clips of {held_out.sum()} held out to train judges with; it must be 100 of either kind"
        )
    kept = ~held_out
    facts = [asked for asked, keep in zip(truth, kept, strict=True) if keep]
    mine = {name: rows[kept] for name, rows in heard.items()}
    present = np.asarray(
        [[any(name in one for one in a.instruments) for name in INSTRUMENT_NAMES] for a in facts]
    )
    keys = np.asarray([KEYS.index(str(asked.key)) for asked in facts])
    tonic = LogisticRegression(class_weight="balanced", max_iter=1000)
    tonic.fit(_rotations(mine["chroma"]), (np.arange(12) == keys[:, None]).ravel())
    mode = LogisticRegression(class_weight="balanced", max_iter=1000)
    mode.fit(_rotated(mine["chroma"], keys), [str(asked.mode) for asked in facts])
    metred = np.asarray([asked.metre is not None for asked in facts])
    metre = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    metre.fit(_metre_rows(mine)[metred], [asked.metre for asked in facts if asked.metre])
    network = {"early_stopping": True, "n_iter_no_change": 20, "max_iter": 400, "random_state": seed}
    instruments = make_pipeline(StandardScaler(), MLPClassifier((256,), alpha=1.0, **network))
    instruments.fit(mine["statistics"], present)
    genre = group_judge.train(mine["statistics"], np.asarray([str(asked.genre) for asked in facts]), seed)
    judges = Judges(genre, instruments, tonic, mode, metre, {}, {})
    tests = [asked for asked, out in zip(truth, held_out, strict=True) if out]
    for name, scores in right(judges, {key: rows[held_out] for key, rows in heard.items()}, tests).items():
        judges.accuracy[name] = float(np.nanmean(scores))
        judges.chance[name] = _chance(name, facts, tests)
    return judges


def right(judges: Judges, heard: Heard, truth: Sequence[Asked]) -> dict[str, np.ndarray]:
    """Of each of `FACTS`, (N,): whether each clip is heard as it should be, 0 or 1; nan where nothing is asked.

    Instruments score the share of those that are asked for which is heard.
    """
    keys = np.argmax(judges.tonic.decision_function(_rotations(heard["chroma"])).reshape(-1, 12), axis=1)
    modes = judges.mode.predict(_rotated(heard["chroma"], keys))
    genres, metres = judges.genre.predict(heard["statistics"]), judges.metre.predict(_metre_rows(heard))
    present = judges.instruments.predict(heard["statistics"])
    scores = {name: np.full(len(truth), np.nan) for name in FACTS}
    for i, asked in enumerate(truth):
        there = {name for name, is_there in zip(INSTRUMENT_NAMES, present[i], strict=True) if is_there}
        if asked.genre:
            scores["genre"][i] = genres[i] == asked.genre
        if asked.instruments:
            scores["instruments"][i] = np.mean([bool(one & there) for one in asked.instruments])
        if asked.tempo_bpm:
            scores["tempo"][i] = group_judge.same_tempo(
                float(heard["tempo"][i]), asked.tempo_bpm, TEMPO_TOLERANCE
            )
        if asked.key:
            scores["key"][i] = KEYS[keys[i]] == asked.key
        if asked.mode:
            scores["mode"][i] = modes[i] == asked.mode
        if asked.metre:
            scores["metre"][i] = metres[i] == asked.metre
    return scores


def _rotated(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Chroma (N, 2, 12) that begins at each clip's key (N,), flat (N, 24)."""
    places = (np.arange(12) + keys[:, None]) % 12
    return np.take_along_axis(rows, places[:, None, :], axis=2).reshape(len(rows), 24)


def _rotations(rows: np.ndarray) -> np.ndarray:
    """Chroma (N, 2, 12) as if each pitch class were the key, (N * 12, 24)."""
    every = [_rotated(rows, np.full(len(rows), key)) for key in range(12)]
    return np.stack(every, axis=1).reshape(-1, 24)


def _metre_rows(heard: Heard) -> np.ndarray:
    return np.concatenate([heard["repeats"], np.log(np.maximum(heard["tempo"], 30))[:, None]], axis=1)


def _chance(name: str, train: Sequence[Asked], test: Sequence[Asked]) -> float:
    """Score on `test` of the one answer that is right most often in `train`."""
    if name == "instruments":
        counts = np.asarray(
            [[{i} & set().union(*a.instruments) != set() for i in INSTRUMENT_NAMES] for a in train]
        )
        usual = {n for n, often in zip(INSTRUMENT_NAMES, counts.mean(axis=0) > 0.5, strict=True) if often}
        return float(
            np.mean([np.mean([bool(one & usual) for one in a.instruments]) for a in test if a.instruments])
        )
    if name == "tempo":
        tempi = [a.tempo_bpm for a in train if a.tempo_bpm]
        asked = [a.tempo_bpm for a in test if a.tempo_bpm]
        hits = [
            np.mean([group_judge.same_tempo(float(t), b, TEMPO_TOLERANCE) for b in tempi])
            for t in range(60, 180, 4)
        ]
        best = float(range(60, 180, 4)[int(np.argmax(hits))])
        return float(np.mean([group_judge.same_tempo(best, b, TEMPO_TOLERANCE) for b in asked]))
    answers = [getattr(a, name) for a in train if getattr(a, name)]
    usual_answer = max(sorted(set(answers)), key=answers.count)
    return float(np.mean([getattr(a, name) == usual_answer for a in test if getattr(a, name)]))
