"""Renders a `Piece` to audio: one stem per track with its effects, then balance, ducking, room, master and loudness.

Without a SoundFont, the built-in synthesiser plays everything. With one, a piece with the renderer "soundfont" is
played by the font (electronic kits are layered with synthesised hits); a piece with the renderer "synth" takes only
acoustic instruments from the font and keeps synthesised pads, leads, basses and electronic kits. The same piece, font
and machine always give the same bytes.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from melody_jax.audio import loudness_normalise, peak_limit, resample
from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.composer import drum_kits, dsp, effects, soundfont, synth
from melody_jax.composer.instruments import INSTRUMENTS
from melody_jax.composer.piece import Piece, Track
from melody_jax.errors import UserError

TARGET_LUFS = -16.0
CEILING = 0.98

# Level of a stem while it plays (dB), room send, depth of the ducking by the kick.
_BALANCE = {
    "melody": (0.0, 1.0, 0.35),
    "counter": (-4.5, 1.0, 0.5),
    "chords": (-4.0, 0.9, 0.8),
    "arp": (-5.5, 1.0, 0.7),
    "pad": (-7.0, 1.0, 1.0),
    "bass": (-1.0, 0.08, 0.8),
    "drums": (2.5, 0.3, 0.0),
}
_ELECTRONIC_FAMILIES = frozenset(("synths", "pads", "chip"))
_ELECTRONIC_PATCHES = frozenset(("bass_saw", "bass_square", "bass_sub"))
_ELECTRONIC_KITS = frozenset(("electronic", "808", "chip"))
_AMPLIFIED = {"distorted guitar": "distortion", "overdriven guitar": "overdrive"}


def render(piece: Piece, soundfont: Path | str | None = None, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Renders a piece. Returns float32 (round(seconds * sample_rate),) at about -16 LUFS with peaks of at most 0.98.

    Raises:
        UserError: an unknown instrument, role, effect, kit or room, or a missing font or FluidSynth.
    """
    count = round(piece.seconds * SAMPLE_RATE)
    if count <= 0:
        raise UserError(f"a piece must last longer than 0 seconds, got {piece.seconds}")
    font = None if soundfont is None else Path(soundfont)
    dry = np.zeros(count, np.float32)
    room_send = np.zeros(count, np.float32)
    pump = _pump(piece, count)
    for index, track in enumerate(piece.tracks):
        if track.role not in _BALANCE:
            raise UserError(f"{track.role!r} is not a role; use one of {', '.join(_BALANCE)}")
        if not track.notes:
            continue
        balance_db, send, ducked = _BALANCE[track.role]
        stem = _levelled(_stem(piece, index, track, font, count), track, balance_db)
        if pump is not None and ducked:
            stem *= 1 - np.float32(ducked) * pump
        dry += stem
        room_send += np.float32(send) * stem
    mixed = _master(piece, dry, room_send)
    if sample_rate == SAMPLE_RATE:
        return mixed
    mixed = resample(mixed, SAMPLE_RATE, sample_rate)
    output = np.zeros(round(piece.seconds * sample_rate), np.float32)
    dsp.add_at(output, 0, np.clip(mixed, -CEILING, CEILING))
    return output


def _stem(piece: Piece, index: int, track: Track, font: Path | None, count: int) -> np.ndarray:
    """One track with its effects, before levelling."""
    beat = piece.seconds_per_beat
    notes = [(note.start * beat, note.duration * beat, note.pitch, note.velocity) for note in track.notes]
    rng = np.random.default_rng([piece.seed, index, zlib.crc32(track.instrument.encode())])
    if track.role == "drums":
        return effects.apply(_drums(piece, notes, font, count), track.effects, rng, beat)
    if track.instrument not in INSTRUMENTS:
        raise UserError(f"{track.instrument!r} is not an instrument of the composer")
    instrument = INSTRUMENTS[track.instrument]
    variant = int(rng.integers(synth.VARIANTS))
    chain = track.effects
    if font is not None and not _synthesised(piece, track):
        audio = soundfont.play(font, instrument.program, notes, count)
    else:
        audio = synth.play(track.instrument, instrument.synth_patch, notes, count, variant)
        amplifier = _AMPLIFIED.get(track.instrument)
        if amplifier and amplifier not in chain:
            chain = (amplifier, *chain)
    return effects.apply(audio, chain, rng, beat)


def _synthesised(piece: Piece, track: Track) -> bool:
    """Whether the synthesiser plays a track even with a font."""
    instrument = INSTRUMENTS[track.instrument]
    electronic = instrument.family in _ELECTRONIC_FAMILIES or instrument.synth_patch in _ELECTRONIC_PATCHES
    return piece.production.renderer == "synth" and electronic


def _drums(
    piece: Piece, hits: Sequence[tuple[float, float, int, int]], font: Path | None, count: int
) -> np.ndarray:
    kit = piece.production.drum_kit
    if kit not in drum_kits.KITS:
        raise UserError(f"{kit!r} is not a drum kit; use one of {', '.join(drum_kits.KITS)}")
    electronic = kit in _ELECTRONIC_KITS
    if font is None or (electronic and piece.production.renderer == "synth"):
        return drum_kits.play(kit, hits, count, piece.seed)
    audio = soundfont.play_drums(font, kit, hits, count, piece.seed)
    if not electronic:
        return audio
    layer = drum_kits.play(kit, hits, count, piece.seed)
    return audio / np.float32(max(1e-6, dsp.level(audio))) + 0.7 * layer / np.float32(
        max(1e-6, dsp.level(layer))
    )


def _levelled(stem: np.ndarray, track: Track, balance_db: float) -> np.ndarray:
    """The stem at the level of its role while it plays; half of the dynamics (in dB) remains."""
    loudness = dsp.level(stem, share=0.5)
    touch = sum(note.velocity for note in track.notes) / len(track.notes) / 90
    gain = 0.1 * 10 ** ((balance_db + track.gain_db) / 20) * touch**0.5
    return stem * np.float32(gain / max(1e-5, loudness))


def _pump(piece: Piece, count: int) -> np.ndarray | None:
    """Depth of the side-chain ducking (0..1), (count,), or None without side-chain or kicks."""
    if not piece.production.sidechain:
        return None
    beat = piece.seconds_per_beat
    kicks = [
        n.start * beat
        for t in piece.tracks
        if t.role == "drums"
        for n in t.notes
        if n.pitch in drum_kits.KICKS
    ]
    if not kicks:
        return None
    rng = np.random.default_rng([piece.seed, 36])
    return 1 - effects.ducking(kicks, count, rng.uniform(0.55, 0.95), rng.uniform(0.6, 0.95) * min(beat, 0.6))


def _master(piece: Piece, dry: np.ndarray, room_send: np.ndarray) -> np.ndarray:
    production = piece.production
    rng = np.random.default_rng([piece.seed, 1000])
    variant = int(rng.integers(effects.ROOM_VARIANTS))
    mixed = dry
    if production.room != "dry" and production.reverb > 0:
        mixed = dry + np.float32(0.65 * production.reverb) * effects.reverb(
            room_send, production.room, variant
        )
    mixed = effects.tilt(mixed, production.brightness)
    if production.lofi:
        mixed = effects.lofi(mixed, rng)
    loudness = dsp.level(mixed)
    if production.master_drive > 0.02 and loudness > 1e-6:
        mixed = dsp.waveshape(mixed, (0.05 + 0.5 * production.master_drive**1.5) / loudness)
    mixed = dsp.filtered(mixed, dsp.biquad("highpass", 26, 0.7))
    fade = min(len(mixed), 240)
    mixed[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return peak_limit(loudness_normalise(mixed, TARGET_LUFS), CEILING)
