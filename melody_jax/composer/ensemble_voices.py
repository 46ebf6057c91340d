"""Many voices at once: looped ensembles of oscillators, string players or singers."""

import math
from collections.abc import Sequence

import numpy as np

from melody_jax.composer import dsp
from melody_jax.composer.oscillator_voices import envelope, harmonic_amplitudes
from melody_jax.composer.voice import BODIES, Voice


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
    """Detuned oscillators in unison through a moving low-pass, for saw leads and warm pads."""
    tone = voice.tone
    base = max(cutoff * tone.brightness, 1.5 * voice.frequency)
    top = min(base * 2**sweep, voice.clock.highest(11_500.0))
    ladder = np.geomspace(min(base, 0.98 * top), top, max(2, min(5, math.ceil(1.4 * sweep) + 1)))

    def make() -> np.ndarray:
        harmonics = harmonic_amplitudes(shape, voice.harmonics(), 0.42)
        offsets = np.linspace(-1, 1, int(voices)) * (1 + 0.1 * voice.rng.standard_normal(int(voices)))
        detune = np.exp2(offsets * cents * tone.detune / 1200)[:, None] - 1
        frequencies = voice.frequency * np.arange(1, len(harmonics) + 1)
        spectra = harmonics * dsp.lowpass_response(frequencies, ladder, quality * tone.resonance)
        return voice.clock.ensemble(voice.frequency, spectra, detune, voice.rng, coherent=True)

    loops = BODIES.get(("loops", *voice.key), make)
    opening = (0.4 + 0.6 * voice.velocity) * envelope(voice, rise * tone.attack, fall * tone.decay, hold)
    return voice.clock.attack(
        dsp.looped(loops, voice.count, (len(ladder) - 1) * opening), amp_rise * tone.attack
    )


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
    """Many players or singers: each harmonic is a band of random lines, shaped by formants (Hz, octaves, weight)."""
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
        return voice.clock.ensemble(
            voice.frequency, np.stack([dull, bright]), detune, voice.rng, coherent=False
        )

    time = voice.clock.times(voice.count)
    opening = (0.3 + 0.7 * voice.velocity) * (1 - np.exp(-time / bloom))
    sound = dsp.looped(BODIES.get(("loops", *voice.key), make), voice.count, opening)
    if tremolo:
        bow = np.float32(2 * np.pi * (9 + 4 * tone.blend))
        sound *= 0.55 + 0.45 * np.sin(bow * time + 0.8 * np.sin(time * 7))
    return voice.clock.attack(sound, rise * tone.attack)
