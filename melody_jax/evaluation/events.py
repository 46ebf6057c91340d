"""Do a clip's attacks and notes agree with its original's? NumPy; clips are (T,) at 24 kHz.

Agreement is an F1 score: 1 if both have the same events, 0 if none of them is shared.

T samples, F frames, N notes.
"""

import numpy as np

from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.evaluation.reconstruction import log_mel

ATTACK_RANGE = 7.0
"""Mel bands this far below the clip's loudest, nepers, are as good as silent (60 dB)."""
ATTACK_RISE = 0.15
"""Least rise of an attack over its surroundings, nepers, mean over mel bands."""
ATTACK_TOLERANCE = 5
"""Attacks this many frames apart agree, 50 ms."""
NOTES = np.arange(33, 97)
"""MIDI pitches that are looked for, 55 Hz to 2.1 kHz."""
QUIETEST_NOTE_DB = -50.0
"""Lowest level of a note, dB relative to a sine of full scale."""
NOTE_RANGE_DB = 30.0
"""A note is at most this far below the loudest of its frame."""
NOTE_PROMINENCE_DB = 12.0
"""How far a note stands out from the median of the octave around it."""


def attacks(wave: np.ndarray) -> np.ndarray:
    """Frames (N,), at 100 Hz, at which something begins: peaks of the rise of the log-mel spectrum."""
    level = log_mel(wave[None])[0]
    level = np.maximum(level, level.max() - ATTACK_RANGE)
    rise = np.maximum(level[2:] - level[:-2], 0).mean(axis=1)
    around = np.convolve(
        np.pad(rise, 50, mode="reflect" if len(rise) > 50 else "edge"), np.full(101, 1 / 101), "valid"
    )
    neighbours = np.lib.stride_tricks.sliding_window_view(np.pad(rise, 3), 7)
    is_peak = (rise == neighbours.max(axis=1)) & (rise >= around + ATTACK_RISE)
    return np.flatnonzero(is_peak) + 1


def attack_agreement(clip: np.ndarray, original: np.ndarray) -> float:
    """F1 score of the clip's attacks, each of which may match one of the original's within 50 ms; nan without any."""
    clip_attacks = attacks(clip).tolist()
    true_attacks = attacks(original).tolist()
    if not clip_attacks and not true_attacks:
        return np.nan
    matches = 0
    position = 0
    for frame in true_attacks:
        while position < len(clip_attacks) and clip_attacks[position] < frame - ATTACK_TOLERANCE:
            position += 1
        if position < len(clip_attacks) and clip_attacks[position] <= frame + ATTACK_TOLERANCE:
            matches += 1
            position += 1
    return 2 * matches / (len(clip_attacks) + len(true_attacks))


def notes(levels: np.ndarray) -> np.ndarray:
    """Which of `NOTES` sound in each frame, bool (F, 64), from levels of the bins (`fidelity.levels`).

    Partials count as notes: it is pitches that are compared, not who plays them.
    """
    bins = np.fft.rfftfreq(2 * (levels.shape[1] - 1), 1 / SAMPLE_RATE)
    pitch = 69 + 12 * np.log2(np.maximum(bins, 1) / 440)
    extended = np.arange(NOTES[0] - 6, NOTES[-1] + 7)
    columns = [levels[:, _nearest(pitch, note)].max(axis=1) for note in extended]
    strength = np.stack(columns, axis=1)
    middle = strength[:, 6:-6]
    octave = np.median(np.lib.stride_tricks.sliding_window_view(strength, 13, axis=1), axis=2)
    is_peak = (middle >= strength[:, 5:-7]) & (middle > strength[:, 7:-5])
    loud = (middle >= QUIETEST_NOTE_DB) & (middle >= middle.max(axis=1, keepdims=True) - NOTE_RANGE_DB)
    return is_peak & loud & (middle >= octave + NOTE_PROMINENCE_DB)


def note_agreement(clip_levels: np.ndarray, original_levels: np.ndarray) -> float:
    """F1 score of the notes of all frames, from levels (F, bins) of two clips; nan if neither has a note."""
    clip_notes = notes(clip_levels)
    true_notes = notes(original_levels)
    total = clip_notes.sum() + true_notes.sum()
    return float(2 * (clip_notes & true_notes).sum() / total) if total else np.nan


def _nearest(pitch: np.ndarray, note: int) -> np.ndarray:
    """Indices of the bins within half a semitone of a note, or of the nearest bin."""
    inside = np.flatnonzero(np.abs(pitch - note) <= 0.5)
    return inside if len(inside) else np.array([np.abs(pitch - note).argmin()])
