"""Oscillators, organs, winds and chip sounds: wavetables that a filter envelope moves through."""

import math

import numpy as np

from melody_jax.composer import dsp
from melody_jax.composer.voice import Voice


def harmonic_amplitudes(shape: str, order: np.ndarray, width: float = 0.5) -> np.ndarray:
    """Complex harmonic amplitudes (H,) of a saw, pulse (of `width`) or triangle."""
    if shape == "saw":
        return 1 / order + 0j
    if shape == "pulse":
        return (1 - np.exp(-2j * np.pi * order * width)) / order
    return np.where(order % 2 == 1, np.cos(np.pi * (order - 1) / 2) / order**2, 0) + 0j


def _phase(
    voice: Voice, vibrato: float = 0.0, rate: float = 5.3, onset: float = 0.35, slide: float = 0.0
) -> np.ndarray:
    """Phase in cycles (T,), with a delayed vibrato (semitones) and a slide of `slide` semitones into the note."""
    time = voice.clock.times(voice.count)
    start = voice.rng.random()
    if not vibrato and not slide:
        return voice.frequency * np.arange(voice.count) / voice.clock.sample_rate + start
    semitones = np.float32(vibrato * voice.tone.vibrato) * np.sin(
        np.float32(2 * np.pi * rate) * time + 4 * start
    )
    semitones *= np.clip((time - onset * 0.5) / onset, 0, 1)
    if slide:
        semitones -= slide * np.exp(-time / 0.03)
    return (
        np.cumsum(voice.frequency * np.exp2(semitones / 12).astype(np.float64)) / voice.clock.sample_rate
        + start
    )


def _filter_sweep(
    voice: Voice, cutoff: np.ndarray, harmonics: np.ndarray, quality: float
) -> tuple[np.ndarray, np.ndarray]:
    """Spectra (N, H) filtered at a ladder of cutoffs, three per octave, and the position (T,) of each sample on it."""
    low = float(cutoff.min())
    high = float(cutoff.max())
    steps = max(2, math.ceil(3 * math.log2(high / low)) + 1)
    ladder = np.geomspace(low, max(high, low * 1.02), steps)
    frequencies = voice.frequency * np.arange(1, len(harmonics) + 1)
    spectra = harmonics * dsp.lowpass_response(frequencies, ladder, quality)
    return spectra, np.log(cutoff / low) * np.float32((steps - 1) / math.log(ladder[-1] / low))


def envelope(voice: Voice, rise: float, fall: float, hold: float) -> np.ndarray:
    """Envelope (T,) from 0 to 1 in `rise` s, then towards `hold` with a decay of `fall` s to -60 dB."""
    time = voice.clock.times(voice.count)
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
    """One or two band-limited oscillators through a resonant low-pass with an envelope of `sweep` octaves."""
    tone = voice.tone
    pulse = width or 0.5 - 0.3 * voice.tone.blend
    harmonics = harmonic_amplitudes(shape, voice.harmonics(), pulse)
    contour = envelope(voice, rise, fall * tone.decay, hold)
    base = max(cutoff * tone.brightness, 1.2 * voice.frequency)
    swing = sweep * (0.4 + 0.6 * voice.velocity)
    track = np.minimum(base * np.exp2(swing * contour), voice.clock.highest(11_000)).astype(np.float32)
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
        sound *= 0.02 + voice.clock.decay(voice.count, amp_fall * tone.decay)
    return voice.clock.attack(sound, rise)


def sub(voice: Voice) -> np.ndarray:
    """Sine with slight saturation, and a short downward sweep that is audible on small speakers."""
    phase = _phase(voice, slide=-4.0 * voice.tone.blend)
    sound = np.sin(2 * np.pi * np.mod(phase, 1.0)).astype(np.float32)
    fall = 0.45 + 0.55 * voice.clock.decay(voice.count, 3.0 * voice.tone.decay)
    return voice.clock.attack(dsp.waveshape(sound * fall, 0.5 + 1.2 * voice.tone.brightness), 0.004)


def organ(voice: Voice, pipes: float = 0.0) -> np.ndarray:
    """Drawbar organ with rotor tremolo, or pipes (octaves and fifths up to the mixture), from one table."""
    harmonics = np.zeros(33)
    drawbars = {1: 0.8, 2: 1.0, 3: 0.85, 4: 0.7, 6: 0.45, 8: 0.45, 10: 0.25, 12: 0.25, 16: 0.35}
    if pipes:
        drawbars = {1: 1.0, 2: 0.8, 3: 0.3, 4: 0.65, 6: 0.3, 8: 0.5, 12: 0.25, 16: 0.35, 24: 0.12, 32: 0.15}
    for number, strength in drawbars.items():
        harmonics[number] = (
            strength * (0.35 + 0.65 * voice.rng.random()) * voice.tone.brightness ** math.log2(number)
        )
    audible = harmonics[1 : len(voice.harmonics()) + 1]
    phases = np.exp(2j * np.pi * voice.rng.random(len(audible)))
    phase = _phase(voice, 0.0 if pipes else 0.09, rate=1.0 + 5.5 * voice.tone.blend, onset=0.05)
    sound = dsp.scan(dsp.wave_tables((audible * phases)[None]), phase)
    if not pipes:
        rate = np.float32(2 * np.pi * (1.0 + 5.5 * voice.tone.blend))
        sound *= 1 - 0.12 * (1 + np.sin(rate * voice.clock.times(voice.count)))
    return voice.clock.attack(sound, 0.05 if pipes else 0.006)


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
    """Blown or bowed: harmonics with a resonance that opens during the attack, delayed vibrato, breath noise."""
    tone = voice.tone
    order = voice.harmonics(most=64)
    frequencies = voice.frequency * order
    strengths = order**-slope * (1 + 1.8 * np.exp(-(((np.log2(frequencies / formant)) / 0.6) ** 2)))
    strengths *= np.where(order % 2 == 0, 1 - odd, 1.0) * np.exp(0.2 * voice.rng.standard_normal(len(order)))
    time = voice.clock.times(voice.count)
    swell = 1 - np.exp(-time / (rise * tone.attack))
    opening = bloom * (0.3 + 0.7 * voice.velocity) * (0.6 * swell + 0.4 * swell * np.exp(-time / 0.25))
    cutoff = np.minimum(
        np.maximum(1.6 * voice.frequency, formant * 0.9 * tone.brightness) * np.exp2(opening),
        voice.clock.highest(10_000),
    )
    spectra, position = _filter_sweep(voice, cutoff.astype(np.float32), strengths + 0j, 0.75)
    rate = 4.7 + 1.2 * tone.blend
    sound = dsp.scan(dsp.wave_tables(spectra), _phase(voice, vibrato, rate, slide=slide), position)
    sound *= swell * (1 + 0.05 * vibrato / 0.18 * np.sin(np.float32(2 * np.pi * rate) * time))
    if breath:
        air = dsp.filtered(
            voice.clock.noise(voice.rng, voice.count),
            voice.clock.biquad("bandpass", min(2.5 * voice.frequency, 7000), 0.8),
        )
        puff = 0.5 + np.exp(-time / 0.06)
        sound += np.float32(breath * 2.5 * np.abs(sound).max()) * air * puff * np.minimum(time / 0.02, 1)
    return voice.clock.attack(sound, 0.008)


def chip(voice: Voice, shape: str = "pulse") -> np.ndarray:
    """Channel of a game console: pulse of 12.5, 25 or 50 % width, or a triangle in 16 steps, with vibrato."""
    order = voice.harmonics()
    if shape == "pulse":
        width = (0.5, 0.25, 0.125)[int(voice.tone.blend * 2.999)]
        spectrum = harmonic_amplitudes("pulse", order, width)
    else:
        cycle = np.abs(np.arange(32) / 16 - 1) * 2 - 1
        levels = np.repeat(np.round(cycle * 7.5) / 7.5, 64)
        spectrum = np.fft.rfft(levels)[1 : len(order) + 1] * 2j / 2048
    sound = dsp.scan(dsp.wave_tables(spectrum[None]), _phase(voice, 0.25, 6.0, onset=0.3))
    if shape == "pulse":
        sound *= np.round(15 * (0.45 + 0.55 * voice.clock.decay(voice.count, 1.2 * voice.tone.decay))) / 15
    return voice.clock.attack(sound, 0.001)


def chip_noise(voice: Voice) -> np.ndarray:
    """Sample-and-hold noise at a rate that follows the pitch, with a fast decay."""
    step = voice.clock.sample_rate / min(16 * voice.frequency, voice.clock.highest(11_000))
    levels = np.sign(voice.clock.noise(voice.rng, int(voice.count / step) + 2))
    sound = levels[(np.arange(voice.count) / step).astype(np.int64)]
    return voice.clock.attack(sound * voice.clock.decay(voice.count, 0.4 * voice.tone.decay), 0.0005)
