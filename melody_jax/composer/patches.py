"""Patches of the synthesiser: the generator of an instrument, its options and its release time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from melody_jax.composer import ensemble_voices, mode_voices, oscillator_voices
from melody_jax.errors import UserError


@dataclass(frozen=True)
class Patch:
    """A generator of a voice module with its options, and the time in which a released note falls by 60 dB, seconds."""

    generator: Callable[..., np.ndarray]
    release: float
    options: dict[str, Any]

    @property
    def ensemble(self) -> bool:
        """Whether many voices sound at once, with random phases."""
        return self.generator in (ensemble_voices.unison, ensemble_voices.section)


def _patch(generator: Callable[..., np.ndarray], release: float, **options: Any) -> Patch:
    return Patch(generator, release, options)


_VOWEL = ((650.0, 0.45, 1.0), (1100.0, 0.4, 0.8), (2700.0, 0.35, 0.35))
_BOWED = ((280.0, 0.8, 0.5), (480.0, 0.6, 0.7), (1300.0, 1.0, 0.6), (3000.0, 0.8, 0.4))

PATCHES: dict[str, Patch] = {
    "piano": _patch(mode_voices.piano, 0.30),
    "epiano": _patch(mode_voices.epiano, 0.25),
    "organ": _patch(oscillator_voices.organ, 0.06),
    "pluck": _patch(
        oscillator_voices.oscillator,
        0.25,
        cutoff=500,
        sweep=4.0,
        fall=0.45,
        hold=0.0,
        amp_fall=1.1,
        detuned=1.0,
    ),
    "bass_pluck": _patch(mode_voices.string, 0.12, brightness=0.22, sustain=3.5, position=0.22, body=0.15),
    "bass_saw": _patch(
        oscillator_voices.oscillator, 0.08, cutoff=340, sweep=3.4, fall=0.45, hold=0.25, quality=3.2, sub=0.5
    ),
    "bass_square": _patch(
        oscillator_voices.oscillator,
        0.08,
        shape="pulse",
        cutoff=300,
        sweep=2.6,
        fall=0.6,
        hold=0.3,
        quality=2.0,
        sub=0.3,
    ),
    "bass_sub": _patch(oscillator_voices.sub, 0.10),
    "lead_saw": _patch(ensemble_voices.unison, 0.18, cutoff=3000, sweep=1.6),
    "lead_square": _patch(
        oscillator_voices.oscillator,
        0.10,
        shape="pulse",
        cutoff=1800,
        sweep=1.6,
        hold=0.5,
        vibrato=0.2,
        slide=0.6,
        detuned=0.5,
        width=0.46,
    ),
    "lead_soft": _patch(
        oscillator_voices.oscillator,
        0.25,
        shape="triangle",
        cutoff=1600,
        sweep=1.0,
        quality=0.9,
        vibrato=0.25,
        slide=1.0,
        rise=0.03,
    ),
    "pad_warm": _patch(
        ensemble_voices.unison,
        1.2,
        voices=5,
        cents=11,
        cutoff=500,
        sweep=1.8,
        rise=1.6,
        fall=6,
        quality=0.9,
        amp_rise=0.35,
    ),
    "pad_glass": _patch(ensemble_voices.section, 1.8, sparse=1.0, cents=7, rise=0.25, bloom=1.2),
    "strings": _patch(ensemble_voices.section, 0.45, formants=_BOWED, cents=11, rise=0.14),
    "brass": _patch(
        oscillator_voices.wind,
        0.12,
        formant=1150,
        slope=0.75,
        rise=0.045,
        bloom=2.0,
        vibrato=0.1,
        breath=0.006,
    ),
    "reed": _patch(oscillator_voices.wind, 0.10, formant=1000, slope=0.7, rise=0.03, bloom=1.4, breath=0.02),
    "flute": _patch(
        oscillator_voices.wind, 0.12, formant=900, slope=2.0, rise=0.05, bloom=0.6, breath=0.05, vibrato=0.22
    ),
    "bell": _patch(mode_voices.bell, 1.2),
    "mallet": _patch(mode_voices.bar, 0.5),
    "guitar": _patch(mode_voices.string, 0.15, brightness=0.45, sustain=4.0, position=0.14, body=0.5),
    "guitar_muted": _patch(mode_voices.string, 0.06, brightness=0.3, sustain=0.45, position=0.08, body=0.2),
    "choir": _patch(ensemble_voices.section, 0.5, formants=_VOWEL, cents=14, rise=0.16, slope=0.8),
    "chip_square": _patch(oscillator_voices.chip, 0.02),
    "chip_triangle": _patch(oscillator_voices.chip, 0.02, shape="triangle"),
    "chip_noise": _patch(oscillator_voices.chip_noise, 0.03),
    "harp": _patch(mode_voices.string, 1.2, brightness=0.35, sustain=3.5, position=0.3, body=0.25),
    "sitar": _patch(mode_voices.string, 0.6, brightness=0.8, sustain=4.5, position=0.09, body=0.2, buzz=0.6),
}

_BY_INSTRUMENT: dict[str, Patch] = {
    "honky-tonk piano": _patch(mode_voices.piano, 0.25, mistune=2.2),
    "FM electric piano": _patch(mode_voices.epiano, 0.25, bark=2.0),
    "electric piano": _patch(mode_voices.epiano, 0.2, bark=0.9, tremolo=0.6),
    "harpsichord": _patch(
        mode_voices.string, 0.10, brightness=0.95, sustain=2.2, position=0.09, body=0.2, octave=0.5
    ),
    "clavinet": _patch(mode_voices.string, 0.05, brightness=0.85, sustain=1.6, position=0.06, body=0.0),
    "dulcimer": _patch(mode_voices.string, 0.8, brightness=0.8, sustain=2.4, position=0.18, body=0.3),
    "pizzicato strings": _patch(
        mode_voices.string, 0.2, brightness=0.25, sustain=0.5, position=0.3, body=0.8
    ),
    "banjo": _patch(mode_voices.string, 0.2, brightness=0.9, sustain=0.9, position=0.1, body=0.1),
    "koto": _patch(mode_voices.string, 0.8, brightness=0.6, sustain=2.2, position=0.06, body=0.2),
    "jazz guitar": _patch(mode_voices.string, 0.15, brightness=0.2, sustain=3.0, position=0.25, body=0.3),
    "steel guitar": _patch(mode_voices.string, 0.2, brightness=0.75, sustain=4.5, position=0.12, body=0.45),
    "electric guitar": _patch(mode_voices.string, 0.15, brightness=0.6, sustain=5.0, position=0.17, body=0.0),
    "overdriven guitar": _patch(
        mode_voices.string, 0.12, brightness=0.7, sustain=9.0, position=0.17, body=0.0
    ),
    "distorted guitar": _patch(
        mode_voices.string, 0.10, brightness=0.7, sustain=12.0, position=0.17, body=0.0
    ),
    "slap bass": _patch(mode_voices.string, 0.08, brightness=0.6, sustain=2.2, position=0.1, body=0.1),
    "picked bass": _patch(mode_voices.string, 0.08, brightness=0.35, sustain=3.0, position=0.12, body=0.1),
    "fretless bass": _patch(mode_voices.string, 0.15, brightness=0.1, sustain=5.0, position=0.3, body=0.2),
    "celesta": _patch(mode_voices.bar, 0.8, seconds=1.8, strike=0.35),
    "music box": _patch(mode_voices.bar, 1.0, seconds=1.6, strike=0.6),
    "tubular bells": _patch(mode_voices.bell, 2.0, seconds=5.0, richness=0.8, low=0.3),
    "vibraphone": _patch(mode_voices.bar, 0.6, seconds=3.5, strike=0.25, shimmer=0.35),
    "marimba": _patch(mode_voices.bar, 0.5, seconds=0.9, strike=0.35),
    "xylophone": _patch(mode_voices.bar, 0.4, seconds=0.5, strike=0.9),
    "kalimba": _patch(mode_voices.bar, 0.5, seconds=1.0, strike=0.8),
    "timpani": _patch(mode_voices.bar, 0.8, seconds=1.2, strike=0.2),
    "church organ": _patch(oscillator_voices.organ, 0.35, pipes=1.0),
    "violin": _patch(
        oscillator_voices.wind,
        0.14,
        formant=1400,
        slope=0.8,
        rise=0.07,
        bloom=1.2,
        breath=0.008,
        vibrato=0.28,
    ),
    "fiddle": _patch(
        oscillator_voices.wind,
        0.10,
        formant=1700,
        slope=0.7,
        rise=0.03,
        bloom=1.4,
        breath=0.012,
        vibrato=0.16,
    ),
    "viola": _patch(
        oscillator_voices.wind,
        0.16,
        formant=1000,
        slope=0.8,
        rise=0.08,
        bloom=1.1,
        breath=0.008,
        vibrato=0.25,
    ),
    "cello": _patch(
        oscillator_voices.wind, 0.18, formant=650, slope=0.8, rise=0.08, bloom=1.4, breath=0.006, vibrato=0.22
    ),
    "double bass": _patch(
        oscillator_voices.wind, 0.2, formant=350, slope=0.9, rise=0.09, bloom=1.4, breath=0.006, vibrato=0.12
    ),
    "tremolo strings": _patch(
        ensemble_voices.section, 0.35, formants=_BOWED, cents=12, rise=0.06, tremolo=1.0
    ),
    "slow strings": _patch(ensemble_voices.section, 0.8, formants=_BOWED, cents=12, rise=0.4, slope=1.1),
    "saw pad": _patch(
        ensemble_voices.unison, 0.9, cutoff=1500, cents=16, sweep=1.4, rise=0.8, fall=5, amp_rise=0.15
    ),
    "synth strings": _patch(
        ensemble_voices.unison, 0.6, cutoff=1800, cents=13, sweep=0.8, rise=0.3, fall=4, amp_rise=0.12
    ),
    "sweep pad": _patch(
        ensemble_voices.unison,
        1.2,
        voices=5,
        cutoff=350,
        sweep=4.0,
        rise=2.2,
        fall=7,
        hold=0.3,
        quality=3.0,
        amp_rise=0.3,
    ),
    "synth brass": _patch(
        ensemble_voices.unison, 0.15, voices=5, cents=9, cutoff=700, sweep=2.6, rise=0.05, fall=0.9, hold=0.5
    ),
    "brass section": _patch(
        ensemble_voices.section,
        0.15,
        formants=((1150.0, 1.1, 1.6),),
        cents=7,
        rise=0.04,
        bloom=0.08,
        slope=0.5,
    ),
    "muted trumpet": _patch(
        oscillator_voices.wind, 0.08, formant=2600, slope=0.5, rise=0.025, bloom=0.9, vibrato=0.14
    ),
    "french horn": _patch(
        oscillator_voices.wind, 0.2, formant=550, slope=1.1, rise=0.07, bloom=1.3, vibrato=0.05, breath=0.006
    ),
    "tuba": _patch(
        oscillator_voices.wind, 0.15, formant=350, slope=1.1, rise=0.05, bloom=1.3, vibrato=0.04, breath=0.006
    ),
    "clarinet": _patch(
        oscillator_voices.wind, 0.10, formant=1300, slope=0.8, odd=0.85, rise=0.03, bloom=0.8, vibrato=0.06
    ),
    "oboe": _patch(oscillator_voices.wind, 0.10, formant=1500, slope=0.5, rise=0.03, bloom=0.8, vibrato=0.2),
    "bassoon": _patch(
        oscillator_voices.wind, 0.12, formant=500, slope=0.9, rise=0.04, bloom=1.0, vibrato=0.1
    ),
    "accordion": _patch(
        ensemble_voices.unison, 0.08, voices=3, cents=9, cutoff=2600, sweep=0.2, amp_rise=0.03, shape="pulse"
    ),
    "harmonica": _patch(
        oscillator_voices.wind, 0.08, formant=1800, slope=0.6, rise=0.03, bloom=0.7, breath=0.03, slide=0.4
    ),
    "bagpipes": _patch(
        oscillator_voices.wind, 0.05, formant=1600, slope=0.4, rise=0.015, bloom=0.4, vibrato=0.0, slide=0.0
    ),
    "pan flute": _patch(
        oscillator_voices.wind, 0.15, formant=700, slope=2.4, odd=0.5, rise=0.04, bloom=0.4, breath=0.12
    ),
    "whistle": _patch(
        oscillator_voices.wind, 0.10, formant=1500, slope=3.0, rise=0.04, bloom=0.2, breath=0.03, vibrato=0.3
    ),
    "voice": _patch(
        oscillator_voices.wind,
        0.2,
        formant=750,
        slope=1.0,
        rise=0.08,
        bloom=0.9,
        breath=0.02,
        vibrato=0.35,
        slide=0.6,
    ),
}


def patch_for(instrument: str, synth_patch: str) -> Patch:
    """Returns the patch of an instrument: its specific one, or else the shared `synth_patch`.

    Raises:
        UserError: `synth_patch` does not exist.
    """
    if instrument in _BY_INSTRUMENT:
        return _BY_INSTRUMENT[instrument]
    if synth_patch not in PATCHES:
        raise UserError(f"{synth_patch!r} is not a synthesiser patch; use one of {', '.join(PATCHES)}")
    return PATCHES[synth_patch]
