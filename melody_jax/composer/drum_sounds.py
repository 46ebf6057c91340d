"""Percussion sounds from NumPy: a recipe for each General MIDI percussion key, in five kits.

A recipe combines membranes, noise, metal and tones with numbers that depend on the kit and on the variant.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from melody_jax.composer import dsp
from melody_jax.composer.clock import Clock


@dataclass(frozen=True)
class Strike:
    """What a recipe needs: kit, loudness tier 0 (soft) .. 2 (hard), the random generator of the variant, the clock."""

    kit: str
    tier: int
    rng: np.random.Generator
    clock: Clock

    def near(self, value: float, octaves: float = 0.25) -> float:
        """`value` times a random factor of up to `octaves` up or down."""
        return float(value * 2 ** self.rng.uniform(-octaves, octaves))

    def by_kit(self, acoustic: float, electronic: float, deep: float, brushes: float | None = None) -> float:
        """The value of this kit; `deep` is for the 808, brushes default to `acoustic`."""
        if self.kit == "brushes" and brushes is not None:
            return brushes
        return {
            "acoustic": acoustic,
            "brushes": acoustic,
            "electronic": electronic,
            "808": deep,
            "chip": electronic,
        }[self.kit]


def _sweep(strike: Strike, start: float, end: float, fall: float, seconds: float) -> np.ndarray:
    """Sine of length `seconds` that falls from `start` to `end` Hz with the time constant `fall`."""
    time = strike.clock.times(strike.clock.samples(seconds)).astype(np.float64)
    cycles = end * time + (start - end) * fall * (1 - np.exp(-time / fall))
    return np.sin(2 * np.pi * cycles).astype(np.float32)


def _stepped_noise(strike: Strike, count: int, rate: float) -> np.ndarray:
    steps = np.sign(strike.clock.noise(strike.rng, int(count * rate / strike.clock.sample_rate) + 2))
    return steps[(np.arange(count) * (rate / strike.clock.sample_rate)).astype(np.int64)]


def _burst(strike: Strike, low: float, high: float, seconds: float) -> np.ndarray:
    """Noise between `low` and `high` Hz that falls by 60 dB in `seconds`."""
    count = strike.clock.samples(seconds)
    if strike.kit == "chip":
        return _stepped_noise(
            strike, count, min(strike.clock.highest(11_900), 1.4 * high)
        ) * strike.clock.decay(count, seconds)
    sound = dsp.filtered(
        strike.clock.noise(strike.rng, count),
        strike.clock.biquad("highpass", low),
        strike.clock.biquad("lowpass", min(high, strike.clock.highest(11_500))),
    )
    return sound * strike.clock.decay(count, seconds)


def _mixed(*parts: tuple[np.ndarray, float]) -> np.ndarray:
    output = np.zeros(max(len(part) for part, _ in parts), np.float32)
    for part, gain in parts:
        dsp.add_at(output, 0, part, gain / max(1e-6, float(np.abs(part).max())))
    return output


def _kick(strike: Strike) -> np.ndarray:
    seconds = strike.near(strike.by_kit(0.45, 0.5, 1.1), 0.4)
    end = strike.near(strike.by_kit(58, 48, 45), 0.2)
    start = strike.near(strike.by_kit(170, 320, 150), 0.4)
    tone = _sweep(strike, start, end, strike.near(strike.by_kit(0.022, 0.032, 0.028), 0.3), seconds)
    tone *= np.minimum(1, 1.6 * strike.clock.decay(len(tone), seconds))
    if strike.kit == "chip":
        return np.round(tone * 6) / 6
    knock = _burst(strike, strike.near(1500), 6000, 0.025)
    beater = _burst(
        strike,
        strike.by_kit(60, 200, 200),
        strike.near(strike.by_kit(900, 2500, 1200)),
        strike.by_kit(0.12, 0.05, 0.03),
    )
    sound = _mixed(
        (tone, 1.0), (knock, strike.by_kit(0.18, 0.22, 0.08, 0.03)), (beater, strike.by_kit(0.25, 0.12, 0.05))
    )
    return dsp.waveshape(sound, strike.near(strike.by_kit(1.2, 2.2, 1.6), 0.5))


def _snare(strike: Strike) -> np.ndarray:
    if strike.kit == "brushes":
        slap = _burst(strike, 900, 7000, 0.16)
        swish = _burst(strike, 1500, 9000, strike.near(0.35))
        return _mixed(
            (strike.clock.attack(swish, 0.02), 0.7),
            (slap, 0.8),
            (_sweep(strike, 260, 190, 0.02, 0.1) * strike.clock.decay(strike.clock.samples(0.1), 0.1), 0.25),
        )
    low = strike.near(strike.by_kit(185, 190, 175), 0.2)
    shell = _sweep(strike, 1.5 * low, low, 0.012, 0.22) * strike.clock.decay(
        strike.clock.samples(0.22), strike.near(0.18)
    )
    ring = _sweep(strike, 2.4 * low, 1.78 * low, 0.01, 0.18) * strike.clock.decay(
        strike.clock.samples(0.18), strike.near(0.13)
    )
    wires = _burst(
        strike,
        strike.near(strike.by_kit(1200, 900, 1800)),
        strike.near(9500, 0.15),
        strike.near(strike.by_kit(0.26, 0.24, 0.2), 0.4),
    )
    crack = _burst(strike, 2500, strike.clock.highest(11_000), 0.03)
    weights = strike.by_kit(0.75, 0.7, 0.9), strike.by_kit(0.45, 0.3, 0.4), strike.by_kit(0.8, 1.0, 0.55), 0.5
    return dsp.waveshape(
        _mixed(*zip((shell, ring, wires, crack), weights, strict=True)),
        strike.near(strike.by_kit(0.8, 1.5, 1.0)),
    )


def _rim(strike: Strike) -> np.ndarray:
    tone = _sweep(strike, strike.near(1900), strike.near(1650, 0.1), 0.004, 0.06) * strike.clock.decay(
        strike.clock.samples(0.06), 0.05
    )
    return _mixed(
        (tone, 0.8),
        (_sweep(strike, 520, 480, 0.01, 0.08) * strike.clock.decay(strike.clock.samples(0.08), 0.06), 0.5),
        (_burst(strike, 2500, 9000, 0.02), 0.5),
    )


def _clap(strike: Strike) -> np.ndarray:
    body = _burst(strike, strike.near(750), strike.near(5000), strike.near(0.28, 0.5))
    gap = strike.clock.ratio * strike.near(250, 0.25)
    output = np.zeros(len(body) + round(1400 * strike.clock.ratio), np.float32)
    for index in range(3):
        dsp.add_at(output, round(index * gap), _burst(strike, 900, 7000, 0.02), 0.9)
    dsp.add_at(output, round(3 * gap), body, 1.0)
    return dsp.filtered(output, strike.clock.biquad("peak", strike.near(1300), 1.2, 8))


def _metal(strike: Strike, low: float, seconds: float, modes: int = 48, wash: float = 0.5) -> np.ndarray:
    """Cymbal: inharmonic modes from `low` Hz on, with shorter decays at high frequencies, and noise."""
    count = strike.clock.samples(seconds)
    if strike.kit == "chip":
        return _burst(strike, low, strike.clock.highest(11_000), seconds)
    if strike.kit in ("electronic", "808"):
        roots = np.array([205.3, 304.4, 369.6, 522.7, 540.0, 800.0]) * strike.near(
            1.6 if strike.kit == "electronic" else 1.2
        )
        odd = np.arange(1, 60, 2)
        frequencies = (roots[:, None] * odd).ravel()
        strength = np.tile(1 / odd, 6) * (frequencies > 0.6 * low)
        rates = np.full(len(frequencies), 6.9 / seconds)
    else:
        frequencies = low * 2 ** (strike.rng.random(modes) * np.log2(strike.clock.highest(11_000) / low))
        strength = strike.rng.exponential(1.0, modes)
        rates = 6.9 / seconds * (0.6 + (frequencies / 6000) * strike.rng.uniform(0.5, 1.5, modes))
    tone = strike.clock.damped(
        frequencies, strength, rates, 2 * np.pi * strike.rng.random(len(frequencies)), count
    )
    air = strike.clock.noise(strike.rng, count) * (
        0.75 * strike.clock.decay(count, 0.6 * seconds) + 0.25 * strike.clock.decay(count, seconds)
    )
    sound = _mixed((tone, 1.0), (air, wash))
    return dsp.filtered(
        sound, strike.clock.biquad("highpass", low, 0.9), strike.clock.biquad("highpass", 0.8 * low)
    )


def _hat(strike: Strike) -> np.ndarray:
    return _metal(
        strike,
        strike.near(strike.by_kit(5000, 6500, 6000, 4200), 0.2),
        strike.near(strike.by_kit(0.11, 0.07, 0.06), 0.4),
        wash=0.8,
    )


def _pedal(strike: Strike) -> np.ndarray:
    return _metal(strike, strike.near(4200, 0.2), strike.near(0.09, 0.3), wash=0.6)


def _open_hat(strike: Strike) -> np.ndarray:
    return _metal(
        strike,
        strike.near(strike.by_kit(4800, 6200, 5800), 0.2),
        strike.near(strike.by_kit(0.9, 0.5, 0.45), 0.3),
        wash=0.8,
    )


def _ride(strike: Strike) -> np.ndarray:
    ping = _sweep(strike, strike.near(3300, 0.2), strike.near(3200, 0.1), 0.01, 0.3) * strike.clock.decay(
        strike.clock.samples(0.3), 0.25
    )
    return _mixed(
        (_metal(strike, strike.near(2600, 0.2), strike.near(1.8, 0.3), wash=0.25), 1.0), (ping, 0.35)
    )


def _ride_bell(strike: Strike) -> np.ndarray:
    root = strike.near(820, 0.2)
    ratios = np.array([1.0, 1.52, 2.13, 2.9, 3.77, 4.9, 6.3])
    return strike.clock.damped(
        root * ratios,
        1 / ratios**0.4,
        6.9 / (1.4 / ratios**0.5),
        6 * strike.rng.random(7),
        strike.clock.samples(1.4),
    )


def _crash(strike: Strike) -> np.ndarray:
    return _metal(
        strike, strike.near(strike.by_kit(2200, 3500, 3500), 0.3), strike.near(2.4, 0.3), modes=70, wash=1.0
    )


def _splash(strike: Strike) -> np.ndarray:
    return _metal(strike, strike.near(3200, 0.2), strike.near(0.8, 0.3), wash=1.0)


def _china(strike: Strike) -> np.ndarray:
    return dsp.waveshape(
        _metal(strike, strike.near(1500, 0.2), strike.near(1.3, 0.3), modes=64, wash=1.2), 3.0
    )


def _tom(root: float) -> Callable[[Strike], np.ndarray]:
    def make(strike: Strike) -> np.ndarray:
        low = strike.near(root * strike.by_kit(1.0, 1.0, 0.85), 0.08)
        seconds = strike.near(strike.by_kit(0.6, 0.4, 0.7), 0.3) * (100 / root) ** 0.3
        tone = _sweep(strike, low * strike.by_kit(1.35, 1.9, 1.5), low, 0.04, seconds) * strike.clock.decay(
            strike.clock.samples(seconds), seconds
        )
        second = _sweep(strike, low * 1.8, low * 1.59, 0.03, 0.6 * seconds) * strike.clock.decay(
            strike.clock.samples(0.6 * seconds), 0.5 * seconds
        )
        stick = _burst(strike, 300, 5000, 0.04)
        return _mixed(
            (tone, 1.0), (second, strike.by_kit(0.35, 0.05, 0.02)), (stick, strike.by_kit(0.25, 0.15, 0.05))
        )

    return make


def _hand_drum(root: float, seconds: float, slap: float) -> Callable[[Strike], np.ndarray]:
    def make(strike: Strike) -> np.ndarray:
        low = strike.near(root, 0.08)
        length = strike.near(seconds, 0.2)
        ratios = np.array([1.0, 1.59, 2.14, 2.3, 2.65, 2.92])
        strengths = np.array([1.0, 0.4, 0.25, 0.2, 0.12, 0.1]) * strike.rng.uniform(0.6, 1.4, 6)
        falls = length / np.array([1.0, 1.6, 2.2, 2.5, 3.0, 3.3])
        skin = strike.clock.damped(
            low * ratios, strengths, 6.9 / falls, 6 * strike.rng.random(6), strike.clock.samples(length)
        )
        return _mixed(
            (strike.clock.attack(skin, 0.0008), 1.0), (_burst(strike, 600, strike.near(5000), 0.03), slap)
        )

    return make


def _struck(
    ratios: Sequence[float], root: float, seconds: float, click: float = 0.2
) -> Callable[[Strike], np.ndarray]:
    """Small metal or wooden instrument: fixed modes at `ratios` of `root` Hz."""

    def make(strike: Strike) -> np.ndarray:
        factors = np.array(ratios)
        length = strike.near(seconds, 0.25)
        falls = length / factors**0.4
        tone = strike.clock.damped(
            strike.near(root, 0.12) * factors,
            1 / factors**0.6,
            6.9 / falls,
            6 * strike.rng.random(len(factors)),
            strike.clock.samples(length),
        )
        return _mixed((strike.clock.attack(tone, 0.0006), 1.0), (_burst(strike, 1500, 9000, 0.015), click))

    return make


def _shaken(low: float, seconds: float, rise: float, jingles: float = 0.0) -> Callable[[Strike], np.ndarray]:
    def make(strike: Strike) -> np.ndarray:
        grains = strike.clock.attack(
            _burst(strike, strike.near(low, 0.2), strike.clock.highest(11_000), strike.near(seconds, 0.3)),
            rise,
        )
        if not jingles:
            return grains
        tones = strike.near(1.0, 0.1) * np.array([3900.0, 5200, 6800, 7900, 8800, 9800])
        ring = strike.clock.damped(
            tones, np.ones(6), np.full(6, 6.9 / 0.35), 6 * strike.rng.random(6), strike.clock.samples(0.35)
        )
        return _mixed((grains, 1.0), (ring, jingles))

    return make


def _scraped(seconds: float, teeth: int) -> Callable[[Strike], np.ndarray]:
    def make(strike: Strike) -> np.ndarray:
        output = np.zeros(strike.clock.samples(seconds + 0.05), np.float32)
        for tooth in range(teeth):
            start = strike.clock.samples(seconds * (tooth / teeth) ** 1.15)
            dsp.add_at(output, start, _burst(strike, 1800, 7000, 0.015), 0.5 + 0.5 * tooth / teeth)
        return output

    return make


def _glide(start: float, end: float, seconds: float) -> Callable[[Strike], np.ndarray]:
    """Whistles, cuicas and zaps: one sliding tone with some noise."""

    def make(strike: Strike) -> np.ndarray:
        length = strike.near(seconds, 0.2)
        tone = _sweep(
            strike, strike.near(start, 0.1), strike.near(end, 0.1), length / 4, length
        ) * strike.clock.decay(strike.clock.samples(length), 2 * length)
        return _mixed((strike.clock.attack(tone, 0.003), 1.0), (_burst(strike, 2000, 8000, length), 0.08))

    return make


_HIGH_TOM = 165.0
_LOW_TOM = 78.0
_COWBELL = _struck((1.0, 1.504, 2.0, 3.01, 4.5), 562, 0.35)
_TRIANGLE_RATIOS = (1.0, 1.98, 2.74, 3.6, 4.3)

SOUNDS: dict[int, tuple[str, float, Callable[[Strike], np.ndarray]]] = {
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
"""GM percussion key -> kind of sound, level in the kit (dB), recipe."""
