"""Sound generators of the built-in synthesiser: each makes the body of a note, the sound of a key held down.

Damped modes make strings, bars and bells (a plucked string is the Karplus-Strong loop solved into its modes),
wavetables walked by a filter envelope make oscillators and winds, looped ensembles make pads, strings and choirs,
frequency modulation makes electric pianos. All take a `Voice` and options and give float32 (voice.count,).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from melody_jax.audio import SAMPLE_RATE
from melody_jax.composer import dsp


@dataclass(frozen=True)
class Tone:
    """What sets one take on a patch apart from another: factors near 1 (`blend` in 0..1), drawn per variant."""

    brightness: float = 1.0
    decay: float = 1.0
    detune: float = 1.0
    vibrato: float = 1.0
    attack: float = 1.0
    resonance: float = 1.0
    blend: float = 0.5


@dataclass(frozen=True)
class Voice:
    """One note to make: fundamental in Hz, MIDI pitch, velocity 0..1, length in samples, tone and its own generator.

    `key` (instrument, variant, pitch) names what does not depend on velocity and length.
    """

    frequency: float
    pitch: int
    velocity: float
    count: int
    tone: Tone
    rng: np.random.Generator
    key: tuple[str, int, int]

    def harmonics(self, limit: float = 11_000.0, most: int = 320) -> np.ndarray:
        """The harmonics' numbers 1..H below `limit` Hz, as floats."""
        return np.arange(1.0, max(2, min(most, int(limit / self.frequency)) + 1))


class Cache:
    """Arrays already made, the least recently used ones dropped beyond `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What is kept under `key`, made now if it is not there."""
        body = self._kept.get(key)
        if body is not None:
            self._kept.move_to_end(key)
            return body
        body = self._kept[key] = make()
        self._bytes += body.nbytes
        while self._bytes > self._limit:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return body

    def clear(self) -> None:
        """Forgets everything."""
        self._kept.clear()
        self._bytes = 0


made = Cache(256 * 2**20)


# --- struck and plucked: sums of damped modes -----------------------------------------------------------------------


def piano(voice: Voice, mistune: float = 0.35) -> np.ndarray:
    """Struck strings: stiff partials, each a quick and a slow decay a little out of tune, under the hammer\'s knock."""
    order = voice.harmonics(most=44)
    stiffness = 1.1e-4 * 2 ** ((voice.pitch - 48) / 14)
    frequencies = voice.frequency * order * np.sqrt((1 + stiffness * order**2) / (1 + stiffness))
    hammer = 900 + 2600 * voice.tone.brightness * voice.velocity**1.3
    amplitudes = np.abs(np.sin(np.pi * order / 7.7)) / order**0.55 * np.exp(-frequencies / hammer)
    amplitudes *= 1 + 0.3 * voice.rng.standard_normal(len(order))
    rates = (0.45 * 2 ** ((voice.pitch - 48) / 15) + 0.25 * order) / voice.tone.decay
    phases = 2 * np.pi * voice.rng.random(len(order))
    sound = dsp.damped(
        np.concatenate([frequencies, frequencies + mistune * voice.tone.detune * np.sqrt(order)]),
        np.concatenate([amplitudes, 0.45 * amplitudes]),
        np.concatenate([rates * 2.2, rates * 0.7]),
        np.concatenate([phases, phases + 0.6]),
        voice.count,
    )
    knock = dsp.filtered(
        dsp.noise(voice.rng, min(2400, voice.count)), dsp.biquad("bandpass", 500 + hammer / 3, 0.8)
    )
    knock *= dsp.decay(len(knock), 0.05)
    sound[: len(knock)] += knock * (0.08 * voice.velocity * np.abs(sound[:2400]).max())
    return dsp.attack(sound, 0.0015)


def string(
    voice: Voice,
    brightness: float = 0.5,
    sustain: float = 3.0,
    position: float = 0.13,
    body: float = 0.3,
    buzz: float = 0.0,
    octave: float = 0.0,
) -> np.ndarray:
    """Plucked string: each mode of a damped Karplus-Strong loop falls at its own rate; the pluck's place combs them."""
    order = voice.harmonics(limit=10_500.0, most=90)
    frequencies = voice.frequency * order * np.sqrt(1 + 2e-5 * order**2)
    softness = 1200 + 9000 * brightness * voice.tone.brightness * (0.35 + 0.65 * voice.velocity)
    amplitudes = np.abs(np.sin(np.pi * order * position)) / order**0.8 * np.exp(-frequencies / softness)
    amplitudes *= np.exp(0.35 * voice.rng.standard_normal(len(order)))
    seconds = sustain * voice.tone.decay * 2 ** ((52 - voice.pitch) / 24)
    loss = 1 + (frequencies / (900 + 5000 * brightness)) ** 1.4
    rates = 6.908 / seconds * loss
    phases = 2 * np.pi * voice.rng.random(len(order))
    if octave:
        frequencies = np.concatenate([frequencies, 2 * frequencies * 1.001])
        amplitudes, rates = np.concatenate([amplitudes, octave * amplitudes]), np.tile(rates, 2)
        phases = np.tile(phases, 2)
    sound = dsp.damped(frequencies, amplitudes, rates, phases, voice.count)
    if buzz:
        sound = _buzzing(sound, buzz)
    if body:
        strength = 12 * body
        sound = dsp.filtered(
            sound, dsp.biquad("peak", 110, 1.5, strength * 0.6), dsp.biquad("peak", 240, 1.2, strength * 0.5)
        )
    return dsp.attack(sound, 0.0012)


def _buzzing(sound: np.ndarray, amount: float) -> np.ndarray:
    """A curved bridge: the string grazes it while it swings wide, which keeps feeding the high harmonics."""
    scaled = sound / max(1e-6, float(np.abs(sound).max()))
    rattle = dsp.waveshape(np.maximum(scaled, 0) ** 2, 6.0)
    rattle = dsp.filtered(rattle, dsp.biquad("highpass", 1400), dsp.biquad("peak", 3000, 1.2, 8))
    return scaled + np.float32(amount) * rattle


def bar(voice: Voice, seconds: float = 1.6, strike: float = 0.5, shimmer: float = 0.0) -> np.ndarray:
    """Tuned bar, tongue or kettle: few modes, the upper ones short."""
    ratios = np.array([1.0, 3.98, 9.9, 16.2, 2.0, 6.1])
    amplitudes = np.array([1.0, 0.35, 0.14, 0.06, 0.12, 0.05]) * np.array(
        [1, *[0.4 + 1.6 * strike * voice.velocity] * 5]
    )
    amplitudes[1:] *= voice.tone.brightness
    falls = seconds * voice.tone.decay * 2 ** ((60 - voice.pitch) / 24) / np.array([1.0, 3.5, 8, 14, 1.5, 5])
    sound = dsp.damped(
        voice.frequency * ratios, amplitudes, 6.908 / falls, 2 * np.pi * voice.rng.random(6), voice.count
    )
    click = dsp.noise(voice.rng, min(700, voice.count)) * dsp.decay(min(700, voice.count), 0.02)
    sound[: len(click)] += 0.12 * strike * voice.velocity * dsp.filtered(click, dsp.biquad("lowpass", 2500))
    if shimmer:
        sound *= 1 - shimmer * (0.5 + 0.5 * np.cos(2 * np.pi * 5.2 * dsp.times(voice.count)))
    return dsp.attack(sound, 0.001)


def bell(voice: Voice, seconds: float = 3.0, richness: float = 0.5, low: float = 0.0) -> np.ndarray:
    """Church-like partials in pairs that beat against each other."""
    ratios = np.array([1.0, 2.0, 2.76, 3.0, 4.2, 5.4, 6.8, 8.93, 0.5])
    amplitudes = np.array([1.0, 0.5, 0.5, 0.3, 0.3, 0.22, 0.14, 0.1, low])
    amplitudes[1:8] *= 2 * richness * voice.tone.brightness * (0.4 + 0.6 * voice.velocity)
    falls = (
        seconds
        * voice.tone.decay
        / np.array([1, 1.4, 1.9, 2.2, 3, 4, 5, 7, 0.7])
        * 2 ** ((72 - voice.pitch) / 30)
    )
    split = 1 + 0.0007 * voice.tone.detune
    phases = 2 * np.pi * voice.rng.random(9)
    return dsp.attack(
        dsp.damped(
            voice.frequency * np.concatenate([ratios, ratios * split]),
            np.concatenate([amplitudes, 0.5 * amplitudes]),
            np.tile(6.908 / falls, 2),
            np.tile(phases, 2),
            voice.count,
        ),
        0.001,
    )


def epiano(voice: Voice, bark: float = 1.0, tremolo: float = 0.0) -> np.ndarray:
    """Frequency modulation: a body at ratio 1 whose index falls with the note, and a short tine at ratio 14."""
    time = dsp.times(voice.count)
    omega = np.float32(2 * np.pi * voice.frequency) * time
    brightness = voice.tone.brightness * voice.velocity
    fall = 4.5 * voice.tone.decay * 2 ** ((60 - voice.pitch) / 24)
    body = np.sin(
        omega + np.float32(bark * 1.6 * brightness) * dsp.decay(voice.count, fall * 0.5) * np.sin(omega)
    )
    body *= dsp.decay(voice.count, fall)
    if voice.frequency * 14 < 10_500:
        tine = np.sin(omega + 1.2 * brightness * dsp.decay(voice.count, 0.35) * np.sin(14 * omega))
    else:
        tine = np.sin(4 * omega)
    body += 0.35 * brightness * tine * dsp.decay(voice.count, 0.9)
    if tremolo:
        body *= 1 - 0.35 * tremolo * (0.5 - 0.5 * np.cos(2 * np.pi * 4.6 * time))
    return dsp.attack(body, 0.002)


# --- oscillators and winds: wavetables ------------------------------------------------------------------------------


def _wave(shape: str, order: np.ndarray, width: float = 0.5) -> np.ndarray:
    """Complex harmonic amplitudes (H,) of a saw, pulse (of `width`) or triangle."""
    if shape == "saw":
        return 1 / order + 0j
    if shape == "pulse":
        return (1 - np.exp(-2j * np.pi * order * width)) / order
    return np.where(order % 2 == 1, np.cos(np.pi * (order - 1) / 2) / order**2, 0) + 0j


def _phase(
    voice: Voice, vibrato: float = 0.0, rate: float = 5.3, onset: float = 0.35, slide: float = 0.0
) -> np.ndarray:
    """Cycles (T,): steady, or with delayed vibrato (in semitones) and a slide of `slide` semitones into the note."""
    time = dsp.times(voice.count)
    start = voice.rng.random()
    if not vibrato and not slide:
        return voice.frequency * np.arange(voice.count) / SAMPLE_RATE + start
    semitones = np.float32(vibrato * voice.tone.vibrato) * np.sin(
        np.float32(2 * np.pi * rate) * time + 4 * start
    )
    semitones *= np.clip((time - onset * 0.5) / onset, 0, 1)
    if slide:
        semitones -= slide * np.exp(-time / 0.03)
    return np.cumsum(voice.frequency * np.exp2(semitones / 12).astype(np.float64)) / SAMPLE_RATE + start


def _filter_sweep(
    voice: Voice, cutoff: np.ndarray, harmonics: np.ndarray, quality: float
) -> tuple[np.ndarray, np.ndarray]:
    """Spectra (N, H) filtered at a ladder of cutoffs, three an octave, and each sample's place (T,) on the ladder."""
    low, high = float(cutoff.min()), float(cutoff.max())
    steps = max(2, math.ceil(3 * math.log2(high / low)) + 1)
    ladder = np.geomspace(low, max(high, low * 1.02), steps)
    frequencies = voice.frequency * np.arange(1, len(harmonics) + 1)
    spectra = harmonics * dsp.lowpass_response(frequencies, ladder, quality)
    return spectra, np.log(cutoff / low) * np.float32((steps - 1) / math.log(ladder[-1] / low))


def _contour(voice: Voice, rise: float, fall: float, hold: float) -> np.ndarray:
    """Envelope (T,): 0 to 1 in `rise` s, then towards `hold` with `fall` s to -60 dB."""
    time = dsp.times(voice.count)
    return np.minimum(time / max(rise, 1e-3), 1) * (
        hold + (1 - hold) * np.exp(-6.908 / fall * np.maximum(time - rise, 0))
    )


def oscillator(
    voice: Voice,
    shape: str = "saw",
    cutoff: float = 2500.0,
    sweep: float = 2.0,
    fall: float = 0.5,
    hold: float = 0.3,
    quality: float = 2.0,
    sub: float = 0.0,
    vibrato: float = 0.0,
    rise: float = 0.002,
    slide: float = 0.0,
    detuned: float = 0.0,
    width: float = 0.0,
    amp_fall: float = 0.0,
) -> np.ndarray:
    """Band-limited oscillator(s) through a resonant low-pass that opens by `sweep` octaves and falls back."""
    tone, pulse = voice.tone, width or 0.5 - 0.3 * voice.tone.blend
    harmonics = _wave(shape, voice.harmonics(), pulse)
    contour = _contour(voice, rise, fall * tone.decay, hold)
    base = max(cutoff * tone.brightness, 1.2 * voice.frequency)
    swing = sweep * (0.4 + 0.6 * voice.velocity)
    track = np.minimum(base * np.exp2(swing * contour), 11_000).astype(np.float32)
    spectra, position = _filter_sweep(voice, track, harmonics, quality * tone.resonance)
    tables = dsp.wave_tables(spectra)
    phase = _phase(voice, vibrato, slide=slide)
    sound = dsp.scan(tables, phase, position)
    if detuned:
        sound = sound + dsp.scan(tables, phase * (1 + 0.004 * detuned * tone.detune) + 0.37, position)
    if sub:
        octave_down = 1.0 if voice.frequency < 65 else 0.5
        sound += np.float32(sub) * np.sin(2 * np.pi * np.mod(phase * octave_down, 1.0)).astype(np.float32)
    if amp_fall:
        sound *= 0.02 + dsp.decay(voice.count, amp_fall * tone.decay)
    return dsp.attack(sound, rise)


def sub(voice: Voice) -> np.ndarray:
    """Sine with a little saturation, and the downward blip that lets it be heard on small speakers."""
    phase = _phase(voice, slide=-4.0 * voice.tone.blend)
    sound = np.sin(2 * np.pi * np.mod(phase, 1.0)).astype(np.float32)
    fall = 0.45 + 0.55 * dsp.decay(voice.count, 3.0 * voice.tone.decay)
    return dsp.attack(dsp.waveshape(sound * fall, 0.5 + 1.2 * voice.tone.brightness), 0.004)


def organ(voice: Voice, pipes: float = 0.0) -> np.ndarray:
    """Drawbars (or pipes: octaves and fifths up to the mixture) with a slow rotor's tremolo, from one table."""
    harmonics = np.zeros(33)
    drawbars = {1: 0.8, 2: 1.0, 3: 0.85, 4: 0.7, 6: 0.45, 8: 0.45, 10: 0.25, 12: 0.25, 16: 0.35}
    if pipes:
        drawbars = {1: 1.0, 2: 0.8, 3: 0.3, 4: 0.65, 6: 0.3, 8: 0.5, 12: 0.25, 16: 0.35, 24: 0.12, 32: 0.15}
    for number, strength in drawbars.items():
        harmonics[number] = (
            strength * (0.35 + 0.65 * voice.rng.random()) * voice.tone.brightness ** math.log2(number)
        )
    kept = harmonics[1 : len(voice.harmonics()) + 1]
    phases = np.exp(2j * np.pi * voice.rng.random(len(kept)))
    phase = _phase(voice, 0.0 if pipes else 0.09, rate=1.0 + 5.5 * voice.tone.blend, onset=0.05)
    sound = dsp.scan(dsp.wave_tables((kept * phases)[None]), phase)
    if not pipes:
        rate = np.float32(2 * np.pi * (1.0 + 5.5 * voice.tone.blend))
        sound *= 1 - 0.12 * (1 + np.sin(rate * dsp.times(voice.count)))
    return dsp.attack(sound, 0.05 if pipes else 0.006)


def wind(
    voice: Voice,
    formant: float = 1200.0,
    slope: float = 1.0,
    odd: float = 0.0,
    breath: float = 0.02,
    rise: float = 0.05,
    vibrato: float = 0.18,
    bloom: float = 1.2,
    slide: float = 0.15,
) -> np.ndarray:
    """Blown or bowed: harmonics with a resonance that opens as the note swells, delayed vibrato, breath noise."""
    tone, order = voice.tone, voice.harmonics(most=64)
    frequencies = voice.frequency * order
    strengths = order**-slope * (1 + 1.8 * np.exp(-(((np.log2(frequencies / formant)) / 0.6) ** 2)))
    strengths *= np.where(order % 2 == 0, 1 - odd, 1.0) * np.exp(0.2 * voice.rng.standard_normal(len(order)))
    time = dsp.times(voice.count)
    swell = 1 - np.exp(-time / (rise * tone.attack))
    opening = bloom * (0.3 + 0.7 * voice.velocity) * (0.6 * swell + 0.4 * swell * np.exp(-time / 0.25))
    cutoff = np.minimum(
        np.maximum(1.6 * voice.frequency, formant * 0.9 * tone.brightness) * np.exp2(opening), 10_000
    )
    spectra, position = _filter_sweep(voice, cutoff.astype(np.float32), strengths + 0j, 0.75)
    rate = 4.7 + 1.2 * tone.blend
    sound = dsp.scan(dsp.wave_tables(spectra), _phase(voice, vibrato, rate, slide=slide), position)
    sound *= swell * (1 + 0.05 * vibrato / 0.18 * np.sin(np.float32(2 * np.pi * rate) * time))
    if breath:
        air = dsp.filtered(
            dsp.noise(voice.rng, voice.count), dsp.biquad("bandpass", min(2.5 * voice.frequency, 7000), 0.8)
        )
        puff = 0.5 + np.exp(-time / 0.06)
        sound += np.float32(breath * 2.5 * np.abs(sound).max()) * air * puff * np.minimum(time / 0.02, 1)
    return dsp.attack(sound, 0.008)


def chip(voice: Voice, shape: str = "pulse") -> np.ndarray:
    """A games console's channel: pulse of 12.5, 25 or 50 % width, or a triangle in 16 steps, with a plain vibrato."""
    order = voice.harmonics()
    if shape == "pulse":
        width = (0.5, 0.25, 0.125)[int(voice.tone.blend * 2.999)]
        spectrum = _wave("pulse", order, width)
    else:
        cycle = np.abs(np.arange(32) / 16 - 1) * 2 - 1
        held = np.repeat(np.round(cycle * 7.5) / 7.5, 64)
        spectrum = np.fft.rfft(held)[1 : len(order) + 1] * 2j / 2048
    sound = dsp.scan(dsp.wave_tables(spectrum[None]), _phase(voice, 0.25, 6.0, onset=0.3))
    if shape == "pulse":
        sound *= np.round(15 * (0.45 + 0.55 * dsp.decay(voice.count, 1.2 * voice.tone.decay))) / 15
    return dsp.attack(sound, 0.001)


def chip_noise(voice: Voice) -> np.ndarray:
    """Random levels held at a rate set by the pitch, falling fast."""
    step = SAMPLE_RATE / min(16 * voice.frequency, 11_000)
    held = np.sign(dsp.noise(voice.rng, int(voice.count / step) + 2))
    sound = held[(np.arange(voice.count) / step).astype(np.int64)]
    return dsp.attack(sound * dsp.decay(voice.count, 0.4 * voice.tone.decay), 0.0005)


# --- many voices at once: looped ensembles --------------------------------------------------------------------------


def unison(
    voice: Voice,
    voices: float = 7,
    cents: float = 14.0,
    cutoff: float = 2500.0,
    sweep: float = 1.5,
    rise: float = 0.004,
    fall: float = 1.0,
    hold: float = 0.5,
    quality: float = 1.2,
    amp_rise: float = 0.004,
    shape: str = "saw",
) -> np.ndarray:
    """Detuned oscillators in unison through a moving low-pass: saw leads, warm pads."""
    tone = voice.tone
    base = max(cutoff * tone.brightness, 1.5 * voice.frequency)
    top = min(base * 2**sweep, 11_500.0)
    ladder = np.geomspace(min(base, 0.98 * top), top, max(2, min(5, math.ceil(1.4 * sweep) + 1)))

    def make() -> np.ndarray:
        harmonics = _wave(shape, voice.harmonics(), 0.42)
        spread = np.linspace(-1, 1, int(voices)) * (1 + 0.1 * voice.rng.standard_normal(int(voices)))
        detune = np.exp2(spread * cents * tone.detune / 1200)[:, None] - 1
        frequencies = voice.frequency * np.arange(1, len(harmonics) + 1)
        spectra = harmonics * dsp.lowpass_response(frequencies, ladder, quality * tone.resonance)
        return dsp.ensemble(voice.frequency, spectra, detune, voice.rng, coherent=True)

    loops = made.get(("loops", *voice.key), make)
    opening = (0.4 + 0.6 * voice.velocity) * _contour(voice, rise * tone.attack, fall * tone.decay, hold)
    return dsp.attack(dsp.looped(loops, voice.count, (len(ladder) - 1) * opening), amp_rise * tone.attack)


def section(
    voice: Voice,
    formants: Sequence[tuple[float, float, float]] = ((500, 0.8, 1.0), (1500, 0.8, 0.5)),
    slope: float = 1.0,
    cents: float = 11.0,
    rise: float = 0.12,
    bloom: float = 0.35,
    tremolo: float = 0.0,
    sparse: float = 0.0,
) -> np.ndarray:
    """Many players or singers: every harmonic a band of random lines, shaped by formants (Hz, octaves wide, weight)."""
    tone = voice.tone

    def make() -> np.ndarray:
        order = voice.harmonics(limit=9500.0, most=80)
        frequencies = voice.frequency * order
        moved = frequencies / tone.brightness**0.5
        formed = 0.12 + sum(
            weight * np.exp(-((np.log2(moved / f) / wide) ** 2)) for f, wide, weight in formants
        )
        strengths = order**-slope * formed * np.exp(0.15 * voice.rng.standard_normal(len(order)))
        if sparse:
            chosen = np.isin(order, [1, 2, 3, 4, 6, 8, 11, 12, 16])
            strengths = np.where(
                chosen, order**-0.75 * np.exp(0.5 * voice.rng.standard_normal(len(order))), 0
            )
        dull, bright = (strengths * np.exp(-frequencies / (edge * tone.brightness)) for edge in (1200, 4200))
        detune = voice.rng.standard_normal((9, len(order))) * (cents * tone.detune * 0.00058)
        return dsp.ensemble(voice.frequency, np.stack([dull, bright]), detune, voice.rng, coherent=False)

    time = dsp.times(voice.count)
    opening = (0.3 + 0.7 * voice.velocity) * (1 - np.exp(-time / bloom))
    sound = dsp.looped(made.get(("loops", *voice.key), make), voice.count, opening)
    if tremolo:
        bow = np.float32(2 * np.pi * (9 + 4 * tone.blend))
        sound *= 0.55 + 0.45 * np.sin(bow * time + 0.8 * np.sin(time * 7))
    return dsp.attack(sound, rise * tone.attack)
