"""The tune of a piece: its melody alone, played again on another instrument, for models that follow a melody."""

from dataclasses import replace

import numpy as np

from melody_jax.composer.dice import Dice
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.composer.piece import Piece
from melody_jax.composer.render import render
from melody_jax.melody_tokens import melody_tokens

_STREAM = 0x7E1E  # Separates these draws from those of the composition, which has the same seed.
PLAYERS = (
    "voice",
    "whistle",
    "flute",
    "clarinet",
    "saxophone",
    "violin",
    "cello",
    "piano",
    "electric piano",
    "soft lead",
)
"""Instruments that play tunes."""


def tune(piece: Piece) -> np.ndarray | None:
    """The melody of a piece on one of `PLAYERS` other than its own, float32 (T,) at 24 kHz, without room and effects.

    None if the piece has no melody.
    """
    parts = [track for track in piece.tracks if track.role == "melody"]
    notes = tuple(note for part in parts for note in part.notes)
    if not notes:
        return None
    instruments = {part.instrument for part in parts}
    player = Dice(piece.seed, _STREAM).among([name for name in PLAYERS if name not in instruments])
    track = replace(parts[0], instrument=player, notes=_in_range(notes, player), effects=(), gain_db=0.0)
    production = replace(
        piece.production,
        room="dry",
        reverb=0.0,
        lofi=False,
        sidechain=False,
        master_drive=0.0,
        brightness=0.5,
    )
    return render(replace(piece, tracks=(track,), production=production))


def tune_tokens(piece: Piece) -> list[int]:
    """The melody tokens of the tune of a piece; none if it has no melody."""
    wave = tune(piece)
    return [] if wave is None else melody_tokens(wave).tolist()


def _in_range(notes: tuple, player: str) -> tuple:
    """The notes, moved by octaves into the range of an instrument."""
    instrument = INSTRUMENTS[player]

    def moved(pitch: int) -> int:
        while pitch < instrument.low:
            pitch += 12
        while pitch > instrument.high:
            pitch -= 12
        return pitch

    return tuple(note._replace(pitch=moved(note.pitch)) for note in notes)
