"""The built-in synthesiser, which plays every instrument of `INSTRUMENTS` with NumPy.

A note is a slice of a body (`voice`) times a release, so that a repeated pitch is synthesised once. Bodies are cached
across pieces up to a limit; a body depends only on its key, not on what was made before.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np

from melody_jax.composer import dsp
from melody_jax.composer.clock import Clock
from melody_jax.composer.patches import Patch, patch_for
from melody_jax.composer.voice import BODIES, Tone, Voice

VARIANTS = 16
BODY_LEVEL = 0.2
LONGEST_BODY = 24.0


def tone_variant(instrument: str, variant: int) -> Tone:
    """Returns the tone of variant 0 .. VARIANTS - 1 of an instrument."""
    rng = np.random.default_rng([zlib.crc32(instrument.encode()), variant])
    factors = np.exp2(rng.uniform(-1, 1, 6) * (0.7, 0.4, 0.6, 0.6, 0.5, 0.7))
    return Tone(*map(float, factors), blend=float(rng.random()))


def body(
    clock: Clock,
    instrument: str,
    patch: Patch,
    variant: int,
    pitch: int,
    velocity_step: int,
    length_step: int,
    take: int = 0,
) -> np.ndarray:
    """Returns a sustained note, float32, of 2^(length_step / 2) / 8 s, normalised in level.

    `velocity_step` is 0 (soft) .. 3 (hard). Takes differ in what is random about a note, such as phases.
    """
    count = clock.samples(2 ** (length_step / 2) / 8)
    key = (instrument, variant, pitch, take, clock.sample_rate)
    draws = (variant, pitch, take) if take else (variant, pitch)

    def make() -> np.ndarray:
        voice = Voice(
            frequency=440.0 * 2 ** ((pitch - 69) / 12),
            pitch=pitch,
            velocity=(velocity_step + 0.5) / 4,
            count=count,
            tone=tone_variant(instrument, variant),
            rng=np.random.default_rng([zlib.crc32(instrument.encode()), *draws]),
            key=key,
            clock=clock,
        )
        sound = patch.generator(voice, **patch.options)
        return (sound * np.float32(BODY_LEVEL / max(1e-6, clock.level(sound, share=0.25)))).astype(np.float32)

    return BODIES.get((*key, velocity_step, length_step), make)


def play(
    clock: Clock,
    instrument: str,
    synth_patch: str,
    notes: Sequence[tuple[float, float, int, int]],
    count: int,
    variant: int,
    take: int = 0,
    gains: np.ndarray | None = None,
) -> np.ndarray:
    """Plays notes (start s, duration s, MIDI pitch, velocity 1..127) into float32 (count,).

    `take` is that of `body`, `gains` (N,) are factors of the notes.
    """
    patch = patch_for(instrument, synth_patch)
    output = np.zeros(count, np.float32)
    tail = max(clock.samples(patch.release), clock.samples(0.01))
    release = clock.decay(tail, patch.release) * np.linspace(1, 0, tail, dtype=np.float32) ** 0.5
    for index, (start, duration, pitch, velocity) in enumerate(notes):
        first = clock.samples(start)
        sustained = max(clock.samples(min(duration, LONGEST_BODY)), clock.samples(0.01))
        if first >= count:
            continue
        length_step = max(0, math.ceil(2 * math.log2((sustained + tail) / clock.sample_rate * 8)))
        step = min(3, velocity // 32)
        sound = body(clock, instrument, patch, variant % VARIANTS, pitch, step, length_step, take)
        gain = (velocity / 100) ** 1.5
        if gains is not None:
            gain *= gains[index]
        dsp.add_at(output, first, sound[:sustained], gain)
        dsp.add_at(output, first + sustained, sound[sustained : sustained + tail] * release, gain)
    return output
