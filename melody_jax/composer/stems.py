"""The stem of a track: the synthesiser or a SoundFont plays its notes, effects follow, and in stereo it gets its place.

A stem is float32 (C, T), with C = 1 in mono and 2 in stereo.
"""

import copy
import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from melody_jax.composer import drum_kits, effects, soundfont, stereo, synth
from melody_jax.composer.clock import Clock
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.composer.patches import patch_for
from melody_jax.composer.piece import Piece, Track
from melody_jax.composer.stereo import LEFT, RIGHT, Place
from melody_jax.errors import UserError

_ELECTRONIC_FAMILIES = frozenset(("synths", "pads", "chip"))
_ELECTRONIC_PATCHES = frozenset(("bass_saw", "bass_square", "bass_sub"))
_ELECTRONIC_KITS = frozenset(("electronic", "808", "chip"))
_AMPLIFIED = {"distorted guitar": "distortion", "overdriven guitar": "overdrive"}
Notes = Sequence[tuple[float, float, int, int]]


@dataclasses.dataclass(frozen=True)
class Studio:
    """Where a piece is played: its SoundFont, the clock, the number of samples and of channels."""

    piece: Piece
    font: Path | None
    clock: Clock
    count: int
    channels: int

    @property
    def stereo(self) -> bool:
        """Whether there are two channels."""
        return self.channels == 2


def stem(studio: Studio, index: int, place: Place) -> np.ndarray:
    """Track `index` with its effects at its place, before levelling: float32 (C, T)."""
    track = studio.piece.tracks[index]
    beat = studio.piece.seconds_per_beat
    notes = [(note.start * beat, note.duration * beat, note.pitch, note.velocity) for note in track.notes]
    rng = np.random.default_rng([studio.piece.seed, index, zlib.crc32(track.instrument.encode())])
    if not studio.stereo:
        return _take(studio, track, notes, rng)
    if not place.doubled:
        return stereo.placed(_take(studio, track, notes, rng), place)
    second = np.random.default_rng([studio.piece.seed, index, 1])
    again = stereo.second_take(notes, second)
    takes = _take(studio, track, notes, rng), _take(studio, track, again, second)
    return stereo.placed(np.stack([take.mean(axis=0) for take in takes]), place)


def _take(studio: Studio, track: Track, notes: Notes, rng: np.random.Generator) -> np.ndarray:
    """One take of a track with its effects: (1, T), or in stereo perhaps (2, T)."""
    if track.role == "drums":
        return _through(studio, _drums(studio, notes), track.effects, rng)
    if track.instrument not in INSTRUMENTS:
        raise UserError(f"{track.instrument!r} is not an instrument of the composer")
    instrument = INSTRUMENTS[track.instrument]
    variant = int(rng.integers(synth.VARIANTS))
    chain = track.effects
    if studio.font is not None and not _synthesised(studio.piece, track):
        sides = soundfont.play(studio.clock, studio.font, instrument.program, notes, studio.count)
        return _through(studio, _as_channels(studio, sides), chain, rng)
    amplifier = _AMPLIFIED.get(track.instrument)
    if amplifier and amplifier not in chain:
        chain = (amplifier, *chain)
    return _through(studio, _synth(studio, track, notes, variant), chain, rng)


def _as_channels(studio: Studio, sides: np.ndarray) -> np.ndarray:
    """Left and right (2, T) of a SoundFont; in mono their mean, (1, T)."""
    return sides if studio.stereo else sides.mean(axis=0)[None]


def _through(
    studio: Studio, channels: np.ndarray, chain: tuple[str, ...], rng: np.random.Generator
) -> np.ndarray:
    """A take through its effects, each side with the same draws."""
    if studio.stereo and len(channels) == 1 and effects.STEREO.intersection(chain):
        channels = np.repeat(channels, 2, axis=0)
    beat = studio.piece.seconds_per_beat
    sides = (LEFT, RIGHT) if studio.stereo else (None,)
    racks = [effects.Rack(studio.clock, copy.deepcopy(rng), beat, side) for side in sides]
    return np.stack(
        [effects.apply(channel, chain, rack) for channel, rack in zip(channels, racks, strict=False)]
    )


def _synth(studio: Studio, track: Track, notes: Notes, variant: int) -> np.ndarray:
    """What the synthesiser plays; in stereo a keyboard is spread out, and each side has its own players."""
    instrument = INSTRUMENTS[track.instrument]
    play = functools.partial(
        synth.play, studio.clock, track.instrument, instrument.synth_patch, notes, studio.count, variant
    )
    if not studio.stereo or track.role == "bass":
        return play()[None]
    if stereo.is_spread(instrument):
        return np.stack([play(gains=side) for side in stereo.gains(stereo.key_pans(notes))])
    if patch_for(track.instrument, instrument.synth_patch).ensemble:
        return np.stack([play(take=side) for side in (LEFT, RIGHT)])
    return play()[None]


def _synthesised(piece: Piece, track: Track) -> bool:
    """Whether the synthesiser plays a track even with a font."""
    instrument = INSTRUMENTS[track.instrument]
    electronic = instrument.family in _ELECTRONIC_FAMILIES or instrument.synth_patch in _ELECTRONIC_PATCHES
    return piece.production.renderer == "synth" and electronic


def _drums(studio: Studio, hits: Notes) -> np.ndarray:
    piece = studio.piece
    kit = piece.production.drum_kit
    if kit not in drum_kits.KITS:
        raise UserError(f"{kit!r} is not a drum kit; use one of {', '.join(drum_kits.KITS)}")
    electronic = kit in _ELECTRONIC_KITS
    if studio.font is None or (electronic and piece.production.renderer == "synth"):
        return _synth_drums(studio, kit, hits)
    sides = soundfont.play_drums(studio.clock, studio.font, kit, hits, studio.count, piece.seed)
    played = _as_channels(studio, sides)
    if not electronic:
        return played
    layer = _synth_drums(studio, kit, hits)
    level = studio.clock.level
    return played / np.float32(max(1e-6, level(played))) + 0.7 * layer / np.float32(max(1e-6, level(layer)))


def _synth_drums(studio: Studio, kit: str, hits: Notes) -> np.ndarray:
    play: Callable[..., np.ndarray] = functools.partial(
        drum_kits.play, studio.clock, kit, hits, studio.count, studio.piece.seed
    )
    if not studio.stereo:
        return play()[None]
    return np.stack([play(gains=side) for side in stereo.gains(stereo.drum_pans(hits))])
