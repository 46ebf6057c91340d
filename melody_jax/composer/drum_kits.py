"""Drum kits: every General MIDI percussion key 27..87 in five kits, with several variants of each sound.

The recipes of `drum_sounds` make each hit once, then it is cached. If the CC0 one-shots of the Debian package
`sonic-pi-samples` are installed, some variants of kicks, snares and cymbals use them; the same seed gives the same
bytes on machines with the same packages.
"""

import functools
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from melody_jax.audio import read
from melody_jax.composer import dsp
from melody_jax.composer.clock import Clock
from melody_jax.composer.drum_sounds import SOUNDS, Strike
from melody_jax.errors import UserError

KITS = ("acoustic", "electronic", "808", "brushes", "chip")
KEYS = range(27, 88)
VARIANTS = 8
SAMPLES_FOLDER = Path("/usr/share/sonic-pi/samples")
KICKS = frozenset((35, 36))
_CHOKERS = frozenset((42, 44, 46))

_SAMPLES: dict[tuple[str, str], tuple[str, ...]] = {
    ("electronic", "kick"): (
        "bd_haus",
        "bd_klub",
        "bd_tek",
        "bd_fat",
        "bd_pure",
        "bd_ada",
        "bd_gas",
        "bd_zum",
    ),
    ("electronic", "snare"): ("sn_dolf", "sn_zome", "sn_dub", "elec_hi_snare", "elec_mid_snare"),
    ("808", "kick"): ("bd_808", "bd_boom"),
    ("acoustic", "kick"): ("drum_bass_hard", "drum_heavy_kick", "drum_bass_soft"),
    ("acoustic", "snare"): ("drum_snare_hard", "drum_snare_soft"),
    ("acoustic", "hat"): ("drum_cymbal_closed",),
    ("acoustic", "open"): ("drum_cymbal_open",),
    ("acoustic", "crash"): ("drum_cymbal_hard", "drum_splash_hard"),
}


@functools.lru_cache(maxsize=64)
def _sample(name: str, sample_rate: int) -> np.ndarray | None:
    path = SAMPLES_FOLDER / f"{name}.flac"
    return read(path, sample_rate)[: 3 * sample_rate] if path.is_file() else None


def _recorded(strike: Strike, kind: str) -> np.ndarray | None:
    names = _SAMPLES.get((strike.kit, kind), ())
    choice = int(strike.rng.integers(2 * VARIANTS))
    sound = (
        _sample(names[choice % len(names)], strike.clock.sample_rate) if names and choice < VARIANTS else None
    )
    if sound is None:
        return None
    speed = strike.near(1.0, 0.12)
    sound = dsp.filtered(sound, strike.clock.biquad("highpass", 25))
    return np.interp(np.arange(0, len(sound) - 1, speed), np.arange(len(sound)), sound).astype(np.float32)


@functools.lru_cache(maxsize=1024)
def one_shot(clock: Clock, kit: str, key: int, variant: int, tier: int, take: int) -> np.ndarray:
    """Returns one hit of GM percussion `key`, float32, at its level in the kit.

    `tier` is 0 (soft) .. 2 (hard). `take` 0 or 1 changes only the noise, so that rolls do not sound mechanical.

    Raises:
        UserError: unknown kit or key.
    """
    if kit not in KITS:
        raise UserError(f"{kit!r} is not a drum kit; use one of {', '.join(KITS)}")
    if key not in SOUNDS:
        raise UserError(f"{key} is not a percussion key; General MIDI has {KEYS.start} to {KEYS.stop - 1}")
    kind, level_db, make = SOUNDS[key]
    seed = [zlib.crc32(f"{kit} {kind}".encode()), variant]
    sound = _recorded(Strike(kit, tier, np.random.default_rng([*seed, 7]), clock), kind)
    if sound is None:
        sound = make(
            Strike(kit, tier, np.random.default_rng([*seed, take] if take and kit != "chip" else seed), clock)
        )
    if tier < 2 and kit != "chip":
        sound = dsp.filtered(sound, clock.biquad("highshelf", 3500, 0.7, -4.5 * (2 - tier)))
    tail = min(clock.samples(0.01), len(sound))
    sound = sound.copy()
    sound[len(sound) - tail :] *= np.linspace(1, 0, tail, dtype=np.float32)
    loudest = clock.level(sound, block=0.01, share=0.01)
    return (sound * np.float32(0.4 * 10 ** (level_db / 20) / max(1e-6, loudest))).astype(np.float32)


def play(
    clock: Clock,
    kit: str,
    hits: Sequence[tuple[float, float, int, int]],
    count: int,
    seed: int,
    gains: np.ndarray | None = None,
) -> np.ndarray:
    """Plays hits (start s, duration s, GM percussion key, velocity 1..127); returns float32 (count,).

    `seed` selects one of `VARIANTS` for each kind of sound in the piece; closed and pedal hats choke an open hat.
    `gains` (N,) are factors of the hits.
    """
    output = np.zeros(count, np.float32)
    variants = np.random.default_rng([seed, 808]).integers(VARIANTS, size=128)
    chokes = sorted(clock.samples(start) for start, _, key, _ in hits if key in _CHOKERS)
    fade = np.linspace(1, 0, clock.samples(0.015), dtype=np.float32)
    for index, (start, _, key, velocity) in enumerate(hits):
        first = clock.samples(start)
        kind = SOUNDS[key][0] if key in SOUNDS else ""
        sound = one_shot(
            clock, kit, key, int(variants[zlib.crc32(kind.encode()) % 128]), min(2, velocity // 43), index % 2
        )
        if key == 46:
            following = np.searchsorted(chokes, first, side="right")
            if following < len(chokes) and chokes[following] - first < len(sound):
                sound = sound[: chokes[following] - first + len(fade)].copy()
                sound[-len(fade) :] *= fade[-len(sound) :] if len(sound) >= len(fade) else fade[: len(sound)]
        gain = (velocity / 100) ** 1.5
        dsp.add_at(output, first, sound, gain if gains is None else gain * gains[index])
    return output
