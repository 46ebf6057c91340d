"""Struck and plucked instruments: sums of damped modes, and electric pianos by frequency modulation."""

import numpy as np

from melody_jax.composer import dsp
from melody_jax.composer.voice import Voice


def piano(voice: Voice, mistune: float = 0.35) -> np.ndarray:
    """Struck strings: stiff partials, each with a fast and a slow decay slightly out of tune, and the hammer noise."""
    order = voice.harmonics(most=44)
    stiffness = 1.1e-4 * 2 ** ((voice.pitch - 48) / 14)
    frequencies = voice.frequency * order * np.sqrt((1 + stiffness * order**2) / (1 + stiffness))
    hammer = 900 + 2600 * voice.tone.brightness * voice.velocity**1.3
    amplitudes = np.abs(np.sin(np.pi * order / 7.7)) / order**0.55 * np.exp(-frequencies / hammer)
    amplitudes *= 1 + 0.3 * voice.rng.standard_normal(len(order))
    rates = (0.45 * 2 ** ((voice.pitch - 48) / 15) + 0.25 * order) / voice.tone.decay
    phases = 2 * np.pi * voice.rng.random(len(order))
    sound = voice.clock.damped(
        np.concatenate([frequencies, frequencies + mistune * voice.tone.detune * np.sqrt(order)]),
        np.concatenate([amplitudes, 0.45 * amplitudes]),
        np.concatenate([rates * 2.2, rates * 0.7]),
        np.concatenate([phases, phases + 0.6]),
        voice.count,
    )
    knock = dsp.filtered(
        voice.clock.noise(voice.rng, min(voice.clock.samples(0.1), voice.count)),
        voice.clock.biquad("bandpass", 500 + hammer / 3, 0.8),
    )
    knock *= voice.clock.decay(len(knock), 0.05)
    sound[: len(knock)] += knock * (0.08 * voice.velocity * np.abs(sound[: len(knock)]).max())
    return voice.clock.attack(sound, 0.0015)


def string(
    voice: Voice,
    brightness: float = 0.5,
    sustain: float = 3.0,
    position: float = 0.13,
    body: float = 0.3,
    buzz: float = 0.0,
    octave: float = 0.0,
) -> np.ndarray:
    """Plucked string: the modes of a damped Karplus-Strong loop, with a comb filter by the pluck position."""
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
        amplitudes = np.concatenate([amplitudes, octave * amplitudes])
        rates = np.tile(rates, 2)
        phases = np.tile(phases, 2)
    sound = voice.clock.damped(frequencies, amplitudes, rates, phases, voice.count)
    if buzz:
        sound = _buzzing(voice, sound, buzz)
    if body:
        strength = 12 * body
        sound = dsp.filtered(
            sound,
            voice.clock.biquad("peak", 110, 1.5, strength * 0.6),
            voice.clock.biquad("peak", 240, 1.2, strength * 0.5),
        )
    return voice.clock.attack(sound, 0.0012)


def _buzzing(voice: Voice, sound: np.ndarray, amount: float) -> np.ndarray:
    """A curved bridge, which the string touches at large amplitudes and which excites high harmonics."""
    scaled = sound / max(1e-6, float(np.abs(sound).max()))
    rattle = dsp.waveshape(np.maximum(scaled, 0) ** 2, 6.0)
    rattle = dsp.filtered(
        rattle, voice.clock.biquad("highpass", 1400), voice.clock.biquad("peak", 3000, 1.2, 8)
    )
    return scaled + np.float32(amount) * rattle


def bar(voice: Voice, seconds: float = 1.6, strike: float = 0.5, shimmer: float = 0.0) -> np.ndarray:
    """Tuned bar, tongue or kettledrum: a few modes, with a short decay of the upper ones."""
    ratios = np.array([1.0, 3.98, 9.9, 16.2, 2.0, 6.1])
    amplitudes = np.array([1.0, 0.35, 0.14, 0.06, 0.12, 0.05]) * np.array(
        [1, *[0.4 + 1.6 * strike * voice.velocity] * 5]
    )
    amplitudes[1:] *= voice.tone.brightness
    falls = seconds * voice.tone.decay * 2 ** ((60 - voice.pitch) / 24) / np.array([1.0, 3.5, 8, 14, 1.5, 5])
    sound = voice.clock.damped(
        voice.frequency * ratios, amplitudes, 6.908 / falls, 2 * np.pi * voice.rng.random(6), voice.count
    )
    length = min(round(700 * voice.clock.ratio), voice.count)
    click = voice.clock.noise(voice.rng, length) * voice.clock.decay(length, 0.02)
    sound[: len(click)] += (
        0.12 * strike * voice.velocity * dsp.filtered(click, voice.clock.biquad("lowpass", 2500))
    )
    if shimmer:
        sound *= 1 - shimmer * (0.5 + 0.5 * np.cos(2 * np.pi * 5.2 * voice.clock.times(voice.count)))
    return voice.clock.attack(sound, 0.001)


def bell(voice: Voice, seconds: float = 3.0, richness: float = 0.5, low: float = 0.0) -> np.ndarray:
    """Bell partials in beating pairs."""
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
    return voice.clock.attack(
        voice.clock.damped(
            voice.frequency * np.concatenate([ratios, ratios * split]),
            np.concatenate([amplitudes, 0.5 * amplitudes]),
            np.tile(6.908 / falls, 2),
            np.tile(phases, 2),
            voice.count,
        ),
        0.001,
    )


def epiano(voice: Voice, bark: float = 1.0, tremolo: float = 0.0) -> np.ndarray:
    """Electric piano by frequency modulation: a body at ratio 1 with a falling index, and a short tine at ratio 14."""
    time = voice.clock.times(voice.count)
    omega = np.float32(2 * np.pi * voice.frequency) * time
    brightness = voice.tone.brightness * voice.velocity
    fall = 4.5 * voice.tone.decay * 2 ** ((60 - voice.pitch) / 24)
    body = np.sin(
        omega
        + np.float32(bark * 1.6 * brightness) * voice.clock.decay(voice.count, fall * 0.5) * np.sin(omega)
    )
    body *= voice.clock.decay(voice.count, fall)
    if voice.frequency * 14 < voice.clock.highest(10_500):
        tine = np.sin(omega + 1.2 * brightness * voice.clock.decay(voice.count, 0.35) * np.sin(14 * omega))
    else:
        tine = np.sin(4 * omega)
    body += 0.35 * brightness * tine * voice.clock.decay(voice.count, 0.9)
    if tremolo:
        body *= 1 - 0.35 * tremolo * (0.5 - 0.5 * np.cos(2 * np.pi * 4.6 * time))
    return voice.clock.attack(body, 0.002)
