"""Facts of a piece as numbers: fixed tables, so that a label means the same in every run.

Unknown facts (music that was not composed here) are -1, and nan for the tempo.
"""

from typing import Any

import numpy as np

from melody_jax.composer.genres import GENRES
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.composer.moods import MOODS
from melody_jax.composer.theory import KEYS, MODES

TABLES: dict[str, tuple[str, ...]] = {
    "genre": tuple(GENRES),
    "mood": tuple(MOODS),
    "mode": tuple(MODES),
    "key": tuple(KEYS),
}
INSTRUMENT_NAMES: tuple[str, ...] = tuple(INSTRUMENTS)


def labels(facts: dict[str, Any]) -> dict[str, np.ndarray]:
    """{"genre", "mood", "mode", "key"} () int32, "tempo" () float32 in bpm, "instruments" (I,) float32 multi-hot."""
    found: dict[str, np.ndarray] = {name: np.int32(index(name, facts.get(name))) for name in TABLES}  # type: ignore[misc]
    found["tempo"] = np.float32(facts.get("tempo_bpm", np.nan))  # type: ignore[assignment]
    present = facts.get("instruments")
    found["instruments"] = np.full(len(INSTRUMENT_NAMES), -1.0 if present is None else 0.0, np.float32)
    for name in present or ():
        if name in INSTRUMENT_NAMES:
            found["instruments"][INSTRUMENT_NAMES.index(name)] = 1.0
    return found


def index(table: str, name: str | None) -> int:
    """The position of a name in its table, -1 if it is None or not there."""
    return TABLES[table].index(name) if name in TABLES[table] else -1
