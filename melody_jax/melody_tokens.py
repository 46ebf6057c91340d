"""Melody tokens: the pitch class that leads in every 40 ms of a sound, or silence, for models that follow a tune.

MusicLM (arXiv 2301.11325, section 6) takes the tokens of a network that was trained on versions of the same tunes.
Pitch classes need no such network: they are the same whoever sings or plays a tune, in any octave.

The pitch of a frame is the one with the largest weighted sum of its harmonics' magnitudes (harmonic summation). It is
meant for one voice, such as a hummed, sung or played melody; of a mix it gives what is loudest.

T samples, N tokens, F frequencies of a grid.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int32

from melody_jax.audio_format import SAMPLE_RATE, TOKEN_RATE
from melody_jax.errors import UserError

IDS = 13
"""Ids of a melody token: the pitch classes from C = 0 on, and silence."""
SILENT = 12
"""The token of silence."""
NONE = -1
"""Stands for no token: there the model is free."""
WINDOW = 4096
"""Samples of the window of a frame, 171 ms."""
BLOCK = 250
"""Frames that are analysed at once, 10 s."""
LOWEST, HIGHEST = 40, 88
"""MIDI pitches that are looked for, 82 Hz to 1.3 kHz."""
STEPS = 3
"""Frequencies of the grid in a semitone."""
HARMONICS = 6
"""Harmonics that are summed."""
DECAY = 0.8
"""Weight of each harmonic relative to the one below."""
RANGE_DB = 40.0
"""Frames this far below the loudest are silent."""
QUIETEST_DB = -65.0
"""Frames below this level are silent, dB relative to a sine of full scale."""


def melody_tokens(wave: Float[np.ndarray, " T"]) -> Int32[np.ndarray, " N"]:
    """One token for each 40 ms, N = T / 960 rounded down, of a sound in [-1, 1] at 24 kHz."""
    hop = SAMPLE_RATE // TOKEN_RATE
    count = len(wave) // hop
    if not count:
        return np.zeros(0, np.int32)
    padded = np.pad(wave.astype(np.float32), (WINDOW // 2, WINDOW // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[hop // 2 :: hop][:count]
    parts = [_analyse(frames[first : first + BLOCK]) for first in range(0, count, BLOCK)]
    level, salience = (np.concatenate(column) for column in zip(*parts, strict=True))
    around = np.pad(salience, ((1, 1), (0, 0)), mode="edge")
    pitch = (around[:-2] + salience + around[2:]).argmax(axis=1) + LOWEST
    is_silent = level < max(level.max() - RANGE_DB, QUIETEST_DB)
    return np.where(is_silent, SILENT, pitch % 12).astype(np.int32)


def _analyse(
    frames: Float[np.ndarray, "N window"],
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, "N pitches"]]:
    """The level of every frame, dB relative to a sine of full scale, and the strength of every pitch in it."""
    window = np.hanning(WINDOW).astype(np.float32)
    size = np.abs(np.fft.rfft(frames * window)) / (window.sum() / 2)
    level = 10 * np.log10((size**2).sum(axis=1) + 1e-12)
    return level, _salience(size)


def melody_of_meta(meta: Mapping[str, Any], length: int) -> Int32[np.ndarray, " N"]:
    """The first `length` melody tokens of a record's tune (`melody compose --tunes`); `NONE` where there is none.

    Raises `UserError` if what the record holds are no melody tokens.
    """
    tokens = meta.get("melody") or []
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < IDS for token in tokens):
        raise UserError(f"record {meta.get('id')!r} has a melody that is not a list of 0 to {IDS - 1}")
    tokens = tokens[:length]
    return np.array(tokens + [NONE] * (length - len(tokens)), np.int32)


def _salience(size: Float[np.ndarray, "N bins"]) -> Float[np.ndarray, "N pitches"]:
    """The strength of every pitch in every frame, from magnitudes: sums over harmonics of their square roots."""
    octaves = np.log2(HARMONICS)
    steps = (HIGHEST + 1 - LOWEST) * STEPS
    grid = LOWEST - 0.5 + (np.arange(steps + int(12 * STEPS * octaves) + 1) + 0.5) / STEPS
    bins = 440 * 2 ** ((grid - 69) / 12) * WINDOW / SAMPLE_RATE
    below = bins.astype(int)
    share = bins - below
    loudness = np.sqrt((1 - share) * size[:, below] + share * size[:, below + 1])
    salience = sum(
        DECAY ** (harmonic - 1) * loudness[:, shift : shift + steps]
        for harmonic in range(1, HARMONICS + 1)
        for shift in [round(12 * STEPS * np.log2(harmonic))]
    )
    return np.asarray(salience).reshape(len(size), -1, STEPS).max(axis=2)
