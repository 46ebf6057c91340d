"""Renders a `Piece` to audio: one stem per track, then balance, ducking, room, master and loudness.

Without a SoundFont, the built-in synthesiser plays everything. With one, a piece with the renderer "soundfont" is
played by the font (electronic kits are layered with synthesised hits); a piece with the renderer "synth" takes only
acoustic instruments from the font and keeps synthesised pads, leads, basses and electronic kits. The same piece, font,
format and machine always give the same bytes.
"""

from pathlib import Path

import numpy as np

from melody_jax.audio_format import DEFAULT_FORMAT, HIGHEST_COMPOSED_RATE, LOWEST_RATE, AudioFormat
from melody_jax.composer import drum_kits, dsp, effects, rooms, stems, stereo
from melody_jax.composer.clock import Clock
from melody_jax.composer.piece import Piece, Track
from melody_jax.composer.stems import Studio
from melody_jax.errors import UserError
from melody_jax.loudness import normalise, peak_limit

BALANCE = {
    "melody": (0.0, 1.0, 0.35),
    "counter": (-4.5, 1.0, 0.5),
    "chords": (-4.0, 0.9, 0.8),
    "arp": (-5.5, 1.0, 0.7),
    "pad": (-7.0, 1.0, 1.0),
    "bass": (-1.0, 0.08, 0.8),
    "drums": (2.5, 0.3, 0.0),
}
"""Role of a track -> level of its stem while it plays (dB), room send, depth of the ducking by the kick."""


def render(
    piece: Piece, soundfont: Path | str | None = None, audio_format: AudioFormat = DEFAULT_FORMAT
) -> np.ndarray:
    """Renders a piece at about -16 LUFS with peaks of at most 0.98.

    Returns float32 (round(seconds * sample_rate),), or (T, 2) in stereo.

    Raises:
        UserError: a rate outside of 8 to 96 kHz, an unknown instrument, role, effect, kit or room, or a missing font or
            FluidSynth.
    """
    rate = audio_format.sample_rate
    if not LOWEST_RATE <= rate <= HIGHEST_COMPOSED_RATE:
        raise UserError(
            f"sample_rate {rate}: music is composed at {LOWEST_RATE} to {HIGHEST_COMPOSED_RATE} Hz"
        )
    clock = Clock(rate)
    count = clock.samples(piece.seconds)
    if count <= 0:
        raise UserError(f"a piece must last longer than 0 seconds, got {piece.seconds}")
    font = None if soundfont is None else Path(soundfont)
    studio = Studio(piece, font, clock, count, audio_format.channels)
    dry = np.zeros((studio.channels, count), np.float32)
    room_send = np.zeros_like(dry)
    pump = _pump(clock, piece, count)
    for index, (track, place) in enumerate(zip(piece.tracks, stereo.places(piece), strict=True)):
        if track.role not in BALANCE:
            raise UserError(f"{track.role!r} is not a role; use one of {', '.join(BALANCE)}")
        if not track.notes:
            continue
        balance_db, send, ducked = BALANCE[track.role]
        stem = _levelled(clock, stems.stem(studio, index, place), track, balance_db)
        if pump is not None and ducked:
            stem *= 1 - np.float32(ducked) * pump
        dry += stem
        room_send += np.float32(send) * stem
    return _master(studio, dry, room_send)


def _levelled(clock: Clock, stem: np.ndarray, track: Track, balance_db: float) -> np.ndarray:
    """The stem at the level of its role while it plays; half of the dynamics (in dB) remains."""
    loudness = clock.level(stem, share=0.5)
    touch = sum(note.velocity for note in track.notes) / len(track.notes) / 90
    gain = 0.1 * 10 ** ((balance_db + track.gain_db) / 20) * touch**0.5
    return stem * np.float32(gain / max(1e-5, loudness))


def _pump(clock: Clock, piece: Piece, count: int) -> np.ndarray | None:
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
    return 1 - effects.ducking(
        clock, kicks, count, rng.uniform(0.55, 0.95), rng.uniform(0.6, 0.95) * min(beat, 0.6)
    )


def _master(studio: Studio, dry: np.ndarray, room_send: np.ndarray) -> np.ndarray:
    """The mix (C, T) in its room, with its tone, drive and loudness: (T,), or (T, 2) in stereo."""
    production = studio.piece.production
    clock = studio.clock
    rng = np.random.default_rng([studio.piece.seed, 1000])
    variant = int(rng.integers(rooms.ROOM_VARIANTS))
    mixed = dry
    if production.room != "dry" and production.reverb > 0:
        wet = _in_room(studio, room_send.mean(axis=0), variant)
        mixed = dry + np.float32(0.65 * production.reverb) * wet
    mixed = effects.tilt(clock, mixed, production.brightness)
    if production.lofi:
        mixed = effects.lofi(mixed, effects.Rack(clock, rng, studio.piece.seconds_per_beat))
    loudness = clock.level(mixed)
    if production.master_drive > 0.02 and loudness > 1e-6:
        mixed = dsp.waveshape(mixed, (0.05 + 0.5 * production.master_drive**1.5) / loudness)
    mixed = dsp.filtered(mixed, clock.biquad("highpass", 26, 0.7))
    fade = min(studio.count, clock.samples(0.01))
    mixed[:, -fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    audio = np.ascontiguousarray(mixed.T) if studio.stereo else mixed[0]
    rate = clock.sample_rate
    return peak_limit(normalise(audio, sample_rate=rate), sample_rate=rate)


def _in_room(studio: Studio, sent: np.ndarray, variant: int) -> np.ndarray:
    """What is sent to the room, (T,), comes back from its sides as (C, T)."""
    room = studio.piece.production.room
    return np.stack(
        [rooms.reverb(studio.clock, sent, room, variant, side) for side in range(studio.channels)]
    )
