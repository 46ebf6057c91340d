"""Drum kits from NumPy: every General MIDI percussion key 27..87 in five kits, several takes on each sound.

A hit is drawn from recipes (membrane, noise, metal, tone) whose numbers depend on the kit and on the variant, made once
and kept. Where the CC0 one-shots of the Debian package `sonic-pi-samples` are installed, some variants of kicks, snares
and cymbals use them; the same seed gives the same bytes on machines with the same packages.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from melody_jax.audio import SAMPLE_RATE, read
from melody_jax.composer import dsp
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


@dataclass(frozen=True)
class _Hit:
    """A sound to make: kit, loudness tier 0 (soft) .. 2 (hard), and the generator of this variant."""

    kit: str
    tier: int
    rng: np.random.Generator

    def near(self, value: float, octaves: float = 0.25) -> float:
        """`value` moved at random by up to `octaves` up or down."""
        return float(value * 2 ** self.rng.uniform(-octaves, octaves))

    def by_kit(self, acoustic: float, electronic: float, deep: float, brushes: float | None = None) -> float:
        """The value for this kit ("808" is `deep`), brushes as acoustic unless given."""
        if self.kit == "brushes" and brushes is not None:
            return brushes
        return {
            "acoustic": acoustic,
            "brushes": acoustic,
            "electronic": electronic,
            "808": deep,
            "chip": electronic,
        }[self.kit]


def _sweep(start: float, end: float, fall: float, seconds: float) -> np.ndarray:
    """Sine that falls from `start` to `end` Hz with time constant `fall`, over `seconds`."""
    time = dsp.times(round(seconds * SAMPLE_RATE)).astype(np.float64)
    cycles = end * time + (start - end) * fall * (1 - np.exp(-time / fall))
    return np.sin(2 * np.pi * cycles).astype(np.float32)


def _held_noise(hit: _Hit, count: int, rate: float) -> np.ndarray:
    held = np.sign(dsp.noise(hit.rng, int(count * rate / SAMPLE_RATE) + 2))
    return held[(np.arange(count) * (rate / SAMPLE_RATE)).astype(np.int64)]


def _burst(hit: _Hit, low: float, high: float, seconds: float) -> np.ndarray:
    """Noise between `low` and `high` Hz falling by 60 dB in `seconds`."""
    count = round(seconds * SAMPLE_RATE)
    if hit.kit == "chip":
        return _held_noise(hit, count, min(11_900, 1.4 * high)) * dsp.decay(count, seconds)
    sound = dsp.filtered(
        dsp.noise(hit.rng, count), dsp.biquad("highpass", low), dsp.biquad("lowpass", min(high, 11_500))
    )
    return sound * dsp.decay(count, seconds)


def _mixed(*parts: tuple[np.ndarray, float]) -> np.ndarray:
    output = np.zeros(max(len(part) for part, _ in parts), np.float32)
    for part, gain in parts:
        dsp.add_at(output, 0, part, gain / max(1e-6, float(np.abs(part).max())))
    return output


def _kick(hit: _Hit) -> np.ndarray:
    seconds = hit.near(hit.by_kit(0.45, 0.5, 1.1), 0.4)
    end = hit.near(hit.by_kit(58, 48, 45), 0.2)
    start = hit.near(hit.by_kit(170, 320, 150), 0.4)
    tone = _sweep(start, end, hit.near(hit.by_kit(0.022, 0.032, 0.028), 0.3), seconds)
    tone *= np.minimum(1, 1.6 * dsp.decay(len(tone), seconds))
    if hit.kit == "chip":
        return np.round(tone * 6) / 6
    knock = _burst(hit, hit.near(1500), 6000, 0.025)
    beater = _burst(
        hit, hit.by_kit(60, 200, 200), hit.near(hit.by_kit(900, 2500, 1200)), hit.by_kit(0.12, 0.05, 0.03)
    )
    sound = _mixed(
        (tone, 1.0), (knock, hit.by_kit(0.18, 0.22, 0.08, 0.03)), (beater, hit.by_kit(0.25, 0.12, 0.05))
    )
    return dsp.waveshape(sound, hit.near(hit.by_kit(1.2, 2.2, 1.6), 0.5))


def _snare(hit: _Hit) -> np.ndarray:
    if hit.kit == "brushes":
        slap, swish = _burst(hit, 900, 7000, 0.16), _burst(hit, 1500, 9000, hit.near(0.35))
        return _mixed(
            (dsp.attack(swish, 0.02), 0.7),
            (slap, 0.8),
            (_sweep(260, 190, 0.02, 0.1) * dsp.decay(2400, 0.1), 0.25),
        )
    low = hit.near(hit.by_kit(185, 190, 175), 0.2)
    shell = _sweep(1.5 * low, low, 0.012, 0.22) * dsp.decay(5280, hit.near(0.18))
    ring = _sweep(2.4 * low, 1.78 * low, 0.01, 0.18) * dsp.decay(4320, hit.near(0.13))
    wires = _burst(
        hit,
        hit.near(hit.by_kit(1200, 900, 1800)),
        hit.near(9500, 0.15),
        hit.near(hit.by_kit(0.26, 0.24, 0.2), 0.4),
    )
    crack = _burst(hit, 2500, 11_000, 0.03)
    weights = hit.by_kit(0.75, 0.7, 0.9), hit.by_kit(0.45, 0.3, 0.4), hit.by_kit(0.8, 1.0, 0.55), 0.5
    return dsp.waveshape(
        _mixed(*zip((shell, ring, wires, crack), weights, strict=True)), hit.near(hit.by_kit(0.8, 1.5, 1.0))
    )


def _rim(hit: _Hit) -> np.ndarray:
    tone = _sweep(hit.near(1900), hit.near(1650, 0.1), 0.004, 0.06) * dsp.decay(1440, 0.05)
    return _mixed(
        (tone, 0.8),
        (_sweep(520, 480, 0.01, 0.08) * dsp.decay(1920, 0.06), 0.5),
        (_burst(hit, 2500, 9000, 0.02), 0.5),
    )


def _clap(hit: _Hit) -> np.ndarray:
    body = _burst(hit, hit.near(750), hit.near(5000), hit.near(0.28, 0.5))
    output, gap = np.zeros(len(body) + 1400, np.float32), hit.near(250, 0.25)
    for index in range(3):
        dsp.add_at(output, round(index * gap), _burst(hit, 900, 7000, 0.02), 0.9)
    dsp.add_at(output, round(3 * gap), body, 1.0)
    return dsp.filtered(output, dsp.biquad("peak", hit.near(1300), 1.2, 8))


def _metal(hit: _Hit, low: float, seconds: float, modes: int = 48, wash: float = 0.5) -> np.ndarray:
    """Cymbal: a thicket of inharmonic modes from `low` Hz on, the high ones shorter, over a wash of noise."""
    count = round(seconds * SAMPLE_RATE)
    if hit.kit == "chip":
        return _burst(hit, low, 11_000, seconds)
    if hit.kit in ("electronic", "808"):
        roots = np.array([205.3, 304.4, 369.6, 522.7, 540.0, 800.0]) * hit.near(
            1.6 if hit.kit == "electronic" else 1.2
        )
        odd = np.arange(1, 60, 2)
        frequencies = (roots[:, None] * odd).ravel()
        strength = np.tile(1 / odd, 6) * (frequencies > 0.6 * low)
        rates = np.full(len(frequencies), 6.9 / seconds)
    else:
        frequencies = low * 2 ** (hit.rng.random(modes) * np.log2(11_000 / low))
        strength = hit.rng.exponential(1.0, modes)
        rates = 6.9 / seconds * (0.6 + (frequencies / 6000) * hit.rng.uniform(0.5, 1.5, modes))
    tone = dsp.damped(frequencies, strength, rates, 2 * np.pi * hit.rng.random(len(frequencies)), count)
    air = dsp.noise(hit.rng, count) * (
        0.75 * dsp.decay(count, 0.6 * seconds) + 0.25 * dsp.decay(count, seconds)
    )
    sound = _mixed((tone, 1.0), (air, wash))
    return dsp.filtered(sound, dsp.biquad("highpass", low, 0.9), dsp.biquad("highpass", 0.8 * low))


def _hat(hit: _Hit) -> np.ndarray:
    return _metal(
        hit,
        hit.near(hit.by_kit(5000, 6500, 6000, 4200), 0.2),
        hit.near(hit.by_kit(0.11, 0.07, 0.06), 0.4),
        wash=0.8,
    )


def _pedal(hit: _Hit) -> np.ndarray:
    return _metal(hit, hit.near(4200, 0.2), hit.near(0.09, 0.3), wash=0.6)


def _open_hat(hit: _Hit) -> np.ndarray:
    return _metal(
        hit, hit.near(hit.by_kit(4800, 6200, 5800), 0.2), hit.near(hit.by_kit(0.9, 0.5, 0.45), 0.3), wash=0.8
    )


def _ride(hit: _Hit) -> np.ndarray:
    ping = _sweep(hit.near(3300, 0.2), hit.near(3200, 0.1), 0.01, 0.3) * dsp.decay(7200, 0.25)
    return _mixed((_metal(hit, hit.near(2600, 0.2), hit.near(1.8, 0.3), wash=0.25), 1.0), (ping, 0.35))


def _ride_bell(hit: _Hit) -> np.ndarray:
    root = hit.near(820, 0.2)
    ratios = np.array([1.0, 1.52, 2.13, 2.9, 3.77, 4.9, 6.3])
    return dsp.damped(
        root * ratios, 1 / ratios**0.4, 6.9 / (1.4 / ratios**0.5), 6 * hit.rng.random(7), 33_600
    )


def _crash(hit: _Hit) -> np.ndarray:
    return _metal(hit, hit.near(hit.by_kit(2200, 3500, 3500), 0.3), hit.near(2.4, 0.3), modes=70, wash=1.0)


def _splash(hit: _Hit) -> np.ndarray:
    return _metal(hit, hit.near(3200, 0.2), hit.near(0.8, 0.3), wash=1.0)


def _china(hit: _Hit) -> np.ndarray:
    return dsp.waveshape(_metal(hit, hit.near(1500, 0.2), hit.near(1.3, 0.3), modes=64, wash=1.2), 3.0)


def _tom(root: float) -> Callable[[_Hit], np.ndarray]:
    def make(hit: _Hit) -> np.ndarray:
        low = hit.near(root * hit.by_kit(1.0, 1.0, 0.85), 0.08)
        seconds = hit.near(hit.by_kit(0.6, 0.4, 0.7), 0.3) * (100 / root) ** 0.3
        tone = _sweep(low * hit.by_kit(1.35, 1.9, 1.5), low, 0.04, seconds) * dsp.decay(
            round(seconds * SAMPLE_RATE), seconds
        )
        second = _sweep(low * 1.8, low * 1.59, 0.03, 0.6 * seconds) * dsp.decay(
            round(0.6 * seconds * SAMPLE_RATE), 0.5 * seconds
        )
        stick = _burst(hit, 300, 5000, 0.04)
        return _mixed(
            (tone, 1.0), (second, hit.by_kit(0.35, 0.05, 0.02)), (stick, hit.by_kit(0.25, 0.15, 0.05))
        )

    return make


def _hand_drum(root: float, seconds: float, slap: float) -> Callable[[_Hit], np.ndarray]:
    def make(hit: _Hit) -> np.ndarray:
        low, length = hit.near(root, 0.08), hit.near(seconds, 0.2)
        ratios = np.array([1.0, 1.59, 2.14, 2.3, 2.65, 2.92])
        strengths = np.array([1.0, 0.4, 0.25, 0.2, 0.12, 0.1]) * hit.rng.uniform(0.6, 1.4, 6)
        falls = length / np.array([1.0, 1.6, 2.2, 2.5, 3.0, 3.3])
        skin = dsp.damped(
            low * ratios, strengths, 6.9 / falls, 6 * hit.rng.random(6), round(length * SAMPLE_RATE)
        )
        return _mixed((dsp.attack(skin, 0.0008), 1.0), (_burst(hit, 600, hit.near(5000), 0.03), slap))

    return make


def _struck(
    ratios: Sequence[float], root: float, seconds: float, click: float = 0.2
) -> Callable[[_Hit], np.ndarray]:
    """Small metal or wood: fixed modes at `ratios` of `root` Hz."""

    def make(hit: _Hit) -> np.ndarray:
        factors, length = np.array(ratios), hit.near(seconds, 0.25)
        falls = length / factors**0.4
        tone = dsp.damped(
            hit.near(root, 0.12) * factors,
            1 / factors**0.6,
            6.9 / falls,
            6 * hit.rng.random(len(factors)),
            round(length * SAMPLE_RATE),
        )
        return _mixed((dsp.attack(tone, 0.0006), 1.0), (_burst(hit, 1500, 9000, 0.015), click))

    return make


def _shaken(low: float, seconds: float, rise: float, jingles: float = 0.0) -> Callable[[_Hit], np.ndarray]:
    def make(hit: _Hit) -> np.ndarray:
        grains = dsp.attack(_burst(hit, hit.near(low, 0.2), 11_000, hit.near(seconds, 0.3)), rise)
        if not jingles:
            return grains
        tones = hit.near(1.0, 0.1) * np.array([3900.0, 5200, 6800, 7900, 8800, 9800])
        ring = dsp.damped(tones, np.ones(6), np.full(6, 6.9 / 0.35), 6 * hit.rng.random(6), 8400)
        return _mixed((grains, 1.0), (ring, jingles))

    return make


def _scraped(seconds: float, teeth: int) -> Callable[[_Hit], np.ndarray]:
    def make(hit: _Hit) -> np.ndarray:
        output = np.zeros(round((seconds + 0.05) * SAMPLE_RATE), np.float32)
        for tooth in range(teeth):
            start = round(seconds * (tooth / teeth) ** 1.15 * SAMPLE_RATE)
            dsp.add_at(output, start, _burst(hit, 1800, 7000, 0.015), 0.5 + 0.5 * tooth / teeth)
        return output

    return make


def _glide(start: float, end: float, seconds: float) -> Callable[[_Hit], np.ndarray]:
    """Whistles, cuicas and zaps: one tone sliding, with a little noise."""

    def make(hit: _Hit) -> np.ndarray:
        length = hit.near(seconds, 0.2)
        tone = _sweep(hit.near(start, 0.1), hit.near(end, 0.1), length / 4, length) * dsp.decay(
            round(length * SAMPLE_RATE), 2 * length
        )
        return _mixed((dsp.attack(tone, 0.003), 1.0), (_burst(hit, 2000, 8000, length), 0.08))

    return make


_HIGH_TOM, _LOW_TOM = 165.0, 78.0
_COWBELL = _struck((1.0, 1.504, 2.0, 3.01, 4.5), 562, 0.35)
_TRIANGLE_RATIOS = (1.0, 1.98, 2.74, 3.6, 4.3)

# Key: what it is, how loud it is in the kit (dB), how to make it.
_SOUNDS: dict[int, tuple[str, float, Callable[[_Hit], np.ndarray]]] = {
    27: ("zap", -12, _glide(3500, 300, 0.12)),
    28: ("slap", -8, _clap),
    29: ("scratch", -14, _scraped(0.12, 24)),
    30: ("scratch", -14, _scraped(0.16, 20)),
    31: ("sticks", -11, _struck((1.0, 1.9), 1900, 0.05, 0.5)),
    32: ("click", -12, _struck((1.0, 2.7), 1300, 0.04, 0.5)),
    33: ("click", -12, _struck((1.0, 2.2), 1000, 0.05, 0.5)),
    34: ("bell", -12, _struck((1.0, 2.7, 4.1), 1500, 0.6)),
    35: ("kick", 0, _kick),
    36: ("kick", 0, _kick),
    37: ("rim", -9, _rim),
    38: ("snare", -2.5, _snare),
    39: ("clap", -5, _clap),
    40: ("snare", -2.5, _snare),
    41: ("tom", -4, _tom(_LOW_TOM)),
    42: ("hat", -11, _hat),
    43: ("tom", -4, _tom(92)),
    44: ("pedal", -16, _pedal),
    45: ("tom", -4, _tom(108)),
    46: ("open", -11, _open_hat),
    47: ("tom", -4, _tom(124)),
    48: ("tom", -4, _tom(142)),
    49: ("crash", -9, _crash),
    50: ("tom", -4, _tom(_HIGH_TOM)),
    51: ("ride", -12.5, _ride),
    52: ("china", -11, _china),
    53: ("ride bell", -14, _ride_bell),
    54: ("tambourine", -13, _shaken(4500, 0.2, 0.004, 0.7)),
    55: ("splash", -11, _splash),
    56: ("cowbell", -10, _COWBELL),
    57: ("crash", -9, _crash),
    58: ("vibraslap", -12, _scraped(0.6, 40)),
    59: ("ride", -12.5, _ride),
    60: ("bongo", -8, _hand_drum(420, 0.16, 0.4)),
    61: ("bongo", -8, _hand_drum(300, 0.2, 0.3)),
    62: ("conga", -7, _hand_drum(330, 0.09, 0.6)),
    63: ("conga", -7, _hand_drum(235, 0.32, 0.3)),
    64: ("conga", -7, _hand_drum(175, 0.4, 0.25)),
    65: ("timbale", -8, _hand_drum(480, 0.4, 0.5)),
    66: ("timbale", -8, _hand_drum(340, 0.45, 0.45)),
    67: ("agogo", -12, _struck((1.0, 1.62, 2.9, 4.4), 900, 0.4)),
    68: ("agogo", -12, _struck((1.0, 1.62, 2.9, 4.4), 660, 0.45)),
    69: ("cabasa", -15, _shaken(5500, 0.09, 0.012)),
    70: ("maracas", -16, _shaken(6500, 0.06, 0.008)),
    71: ("whistle", -14, _glide(2350, 2400, 0.14)),
    72: ("whistle", -14, _glide(2300, 2350, 0.45)),
    73: ("guiro", -14, _scraped(0.09, 10)),
    74: ("guiro", -14, _scraped(0.35, 28)),
    75: ("claves", -11, _struck((1.0, 2.9), 2450, 0.09, 0.1)),
    76: ("block", -11, _struck((1.0, 2.4, 3.9), 1050, 0.08, 0.25)),
    77: ("block", -11, _struck((1.0, 2.4, 3.9), 780, 0.09, 0.25)),
    78: ("cuica", -12, _glide(620, 780, 0.12)),
    79: ("cuica", -12, _glide(420, 560, 0.3)),
    80: ("triangle", -18, _struck(_TRIANGLE_RATIOS, 2400, 0.12)),
    81: ("triangle", -18, _struck(_TRIANGLE_RATIOS, 2400, 1.6)),
    82: ("shaker", -16, _shaken(5000, 0.12, 0.03)),
    83: ("jingles", -15, _shaken(5000, 0.35, 0.01, 1.0)),
    84: ("bell tree", -16, _struck((1.0, 1.22, 1.48, 1.8, 2.2, 2.6), 3200, 1.5, 0.02)),
    85: ("castanets", -12, _struck((1.0, 1.7, 2.6), 1700, 0.05, 0.5)),
    86: ("surdo", -5, _hand_drum(80, 0.14, 0.2)),
    87: ("surdo", -4, _hand_drum(68, 0.7, 0.12)),
}


@functools.lru_cache(maxsize=64)
def _sample(name: str) -> np.ndarray | None:
    path = SAMPLES_FOLDER / f"{name}.flac"
    return read(path)[: 3 * SAMPLE_RATE] if path.is_file() else None


def _recorded(hit: _Hit, kind: str) -> np.ndarray | None:
    names = _SAMPLES.get((hit.kit, kind), ())
    choice = int(hit.rng.integers(2 * VARIANTS))
    sound = _sample(names[choice % len(names)]) if names and choice < VARIANTS else None
    if sound is None:
        return None
    speed = hit.near(1.0, 0.12)
    sound = dsp.filtered(sound, dsp.biquad("highpass", 25))
    return np.interp(np.arange(0, len(sound) - 1, speed), np.arange(len(sound)), sound).astype(np.float32)


@functools.lru_cache(maxsize=1024)
def one_shot(kit: str, key: int, variant: int, tier: int, take: int) -> np.ndarray:
    """One hit of GM percussion `key`, float32, at its level in the kit; `tier` 0 (soft) .. 2 (hard), `take` 0 or 1.

    Takes differ by the noise alone, so that a roll does not sound like a machine. Raises `UserError` for an unknown
    kit or key.
    """
    if kit not in KITS:
        raise UserError(f"{kit!r} is no drum kit; there are {', '.join(KITS)}")
    if key not in _SOUNDS:
        raise UserError(f"{key} is no percussion key; General MIDI has {KEYS.start} to {KEYS.stop - 1}")
    kind, level_db, make = _SOUNDS[key]
    seed = [zlib.crc32(f"{kit} {kind}".encode()), variant]
    sound = _recorded(_Hit(kit, tier, np.random.default_rng([*seed, 7])), kind)
    if sound is None:
        sound = make(
            _Hit(kit, tier, np.random.default_rng([*seed, take] if take and kit != "chip" else seed))
        )
    if tier < 2 and kit != "chip":
        sound = dsp.filtered(sound, dsp.biquad("highshelf", 3500, 0.7, -4.5 * (2 - tier)))
    tail = min(240, len(sound))
    sound = sound.copy()
    sound[len(sound) - tail :] *= np.linspace(1, 0, tail, dtype=np.float32)
    loudest = dsp.level(sound, block=0.01, share=0.01)
    return (sound * np.float32(0.4 * 10 ** (level_db / 20) / max(1e-6, loudest))).astype(np.float32)


def play(kit: str, hits: Sequence[tuple[float, float, int, int]], count: int, seed: int) -> np.ndarray:
    """Plays hits (start s, duration s, GM percussion key, velocity 1..127) into float32 (count,).

    Every kind of sound takes one of `VARIANTS` for the whole piece, by `seed`; hats cut an open hat short.
    """
    output = np.zeros(count, np.float32)
    variants = np.random.default_rng([seed, 808]).integers(VARIANTS, size=128)
    chokes = sorted(round(start * SAMPLE_RATE) for start, _, key, _ in hits if key in _CHOKERS)
    fade = np.linspace(1, 0, 360, dtype=np.float32)
    for index, (start, _, key, velocity) in enumerate(hits):
        first = round(start * SAMPLE_RATE)
        kind = _SOUNDS[key][0] if key in _SOUNDS else ""
        sound = one_shot(
            kit, key, int(variants[zlib.crc32(kind.encode()) % 128]), min(2, velocity // 43), index % 2
        )
        if key == 46:
            following = np.searchsorted(chokes, first, side="right")
            if following < len(chokes) and chokes[following] - first < len(sound):
                sound = sound[: chokes[following] - first + len(fade)].copy()
                sound[-len(fade) :] *= fade[-len(sound) :] if len(sound) >= len(fade) else fade[: len(sound)]
        dsp.add_at(output, first, sound, (velocity / 100) ** 1.5)
    return output
