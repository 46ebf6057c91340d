"""Facts of a piece as numbers, by fixed tables, so that a label has the same meaning in every run.

Unknown facts (of music from other sources) are -1, or nan for the tempo.
"""

from typing import Any

import numpy as np

from melody_jax.composer.form import METRES
from melody_jax.composer.genres import GENRES
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.composer.moods import MOODS
from melody_jax.composer.theory import MODES
from melody_jax.control_tokens import KEYS, ControlVocabulary

TABLES: dict[str, tuple[str, ...]] = {
    "genre": tuple(GENRES),
    "mood": tuple(MOODS),
    "mode": tuple(MODES),
    "key": tuple(KEYS),
}
VOCABULARY = ControlVocabulary(modes=tuple(MODES), metres=tuple(METRES), genres=tuple(GENRES))
"""Control tokens for networks that train on composed music."""
INSTRUMENT_NAMES: tuple[str, ...] = tuple(INSTRUMENTS)


def labels(facts: dict[str, Any]) -> dict[str, np.ndarray]:
    """{"genre", "mood", "mode", "key"} () int32, "tempo" () float32 in bpm, "instruments" (I,) float32 multi-hot."""
    values: dict[str, np.ndarray] = {
        name: np.array(index(name, facts.get(name)), np.int32) for name in TABLES
    }
    values["tempo"] = np.array(facts.get("tempo_bpm", np.nan), np.float32)
    present = facts.get("instruments")
    values["instruments"] = np.full(len(INSTRUMENT_NAMES), -1.0 if present is None else 0.0, np.float32)
    for name in present or ():
        if name in INSTRUMENT_NAMES:
            values["instruments"][INSTRUMENT_NAMES.index(name)] = 1.0
    return values


def without_absent_pulse(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a piece, without tempo and metre if it has no pulse."""
    hidden = () if facts.get("rhythmic", True) else ("tempo_bpm", "metre")
    return {name: value for name, value in facts.items() if name not in hidden}


def index(table: str, name: str | None) -> int:
    """The position of a name in its table, -1 for None and unknown names."""
    return TABLES[table].index(name) if name in TABLES[table] else -1
