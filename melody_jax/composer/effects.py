"""Effects of the renderer: saturation, modulation, echoes, sweeps, ducking, lo-fi and synthesised rooms.

All functions take and return mono float32 (T,) at 24 kHz. `apply` runs the named effects of a track; the details
(rates, depths, cutoffs) are drawn from the random generator, so that a seed determines them.
"""

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.composer import dsp
from melody_jax.errors import UserError

ROOM_VARIANTS = 8
SWEEP_BLOCK = 1024

# Reverberation time at low and at high frequencies (s), pre-delay (s), energy fraction of early reflections.
_ROOMS = {
    "studio": (0.35, 0.22, 0.004, 0.5),
    "room": (0.7, 0.4, 0.009, 0.45),
    "hall": (2.2, 1.1, 0.024, 0.25),
    "plate": (1.5, 1.2, 0.002, 0.05),
}


def _lfo(count: int, rate: float, phase: float) -> np.ndarray:
    return np.sin(np.float32(2 * np.pi * rate) * dsp.times(count) + np.float32(2 * np.pi * phase))


def _at_level(audio: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`audio` scaled to the level of `like`."""
    return audio * np.float32(dsp.level(like) / max(1e-6, dsp.level(audio)))


def _cabinet(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top = rng.uniform(3600, 5200)
    return dsp.filtered(
        audio,
        dsp.biquad("highpass", rng.uniform(70, 110), 0.8),
        dsp.biquad("peak", rng.uniform(1800, 2800), 1.0, rng.uniform(2, 6)),
        dsp.biquad("lowpass", top, 0.9),
        dsp.biquad("lowpass", 1.15 * top, 0.6),
    )


def _driven(audio: np.ndarray, rng: np.random.Generator, drive: float, low_cut: float) -> np.ndarray:
    """Two stages of saturation and a loudspeaker cabinet; the level is preserved, the dynamics are reduced."""
    loudness = dsp.level(audio)
    if loudness < 1e-6:
        return audio
    shaped = dsp.filtered(audio, dsp.biquad("highpass", low_cut, 0.7))
    shaped = dsp.waveshape(shaped, drive / loudness)
    return _at_level(_cabinet(dsp.waveshape(shaped + np.float32(0.08), 1.6), rng), audio)


def distortion(audio: np.ndarray, rng: np.random.Generator, seconds_per_beat: float) -> np.ndarray:
    """High-gain amplifier with a cabinet."""
    return _driven(audio, rng, rng.uniform(6, 16), 140)


def overdrive(audio: np.ndarray, rng: np.random.Generator, seconds_per_beat: float) -> np.ndarray:
    """Valve-like saturation with a cabinet; soft notes stay clean."""
    return _driven(audio, rng, rng.uniform(0.9, 2.2), 80)


def chorus(audio: np.ndarray, rng: np.random.Generator, seconds_per_beat: float) -> np.ndarray:
    """Two delayed copies with slowly varying pitch."""
    rate = rng.uniform(0.3, 1.2)
    depth = rng.uniform(1.0, 3.0) * 24
    first = dsp.delayed(audio, 12 * 24 + depth * _lfo(len(audio), rate, rng.random()))
    second = dsp.delayed(audio, 19 * 24 + depth * _lfo(len(audio), 1.31 * rate, rng.random()))
    return 0.7 * audio + 0.45 * first + 0.45 * second


def vibrato(audio: np.ndarray, rng: np.random.Generator, seconds_per_beat: float) -> np.ndarray:
    """Periodic variation of the pitch by up to about a third of a semitone."""
    rate = rng.uniform(4.2, 6.2)
    depth = rng.uniform(0.006, 0.018) / (2 * np.pi * rate) * SAMPLE_RATE
    return dsp.delayed(audio, depth * (1 + _lfo(len(audio), rate, rng.random())))


def tremolo(audio: np.ndarray, rng: np.random.Generator, seconds_per_beat: float) -> np.ndarray:
    """Periodic variation of the loudness, synchronised with the beat or free."""
    rate = float(rng.choice([2, 3, 4])) / seconds_per_beat if rng.random() < 0.6 else rng.uniform(4, 7)
    depth = rng.uniform(0.35, 0.8)
    return audio * (1 - np.float32(depth) * (0.5 + 0.5 * _lfo(len(audio), min(rate, 12.0), 0.25)))


def delay(audio: np.ndarray, rng: np.random.Generator, seconds_per_beat: float) -> np.ndarray:
    """Echoes after half, three quarters or one beat, with less treble."""
    lag = round(float(rng.choice([0.5, 0.75, 1.0])) * seconds_per_beat * SAMPLE_RATE)
    feedback = rng.uniform(0.3, 0.55)
    wet = rng.uniform(0.3, 0.5)
    output = audio.copy()
    echo = dsp.filtered(audio, dsp.biquad("lowpass", rng.uniform(2500, 5000)), dsp.biquad("highpass", 180))
    softened = (echo + np.roll(echo, 1)) * np.float32(0.5)
    for repeat in range(1, 6):
        dsp.add_at(output, repeat * lag, echo if repeat == 1 else softened, wet * feedback ** (repeat - 1))
    return output


def lowpass(audio: np.ndarray, rng: np.random.Generator, seconds_per_beat: float) -> np.ndarray:
    """Low-pass with 24 dB/octave above 700 to 2200 Hz."""
    cutoff = 2 ** rng.uniform(np.log2(700), np.log2(2200))
    return dsp.filtered(audio, dsp.biquad("lowpass", cutoff, 1.1), dsp.biquad("lowpass", cutoff, 0.6))


def highpass(audio: np.ndarray, rng: np.random.Generator, seconds_per_beat: float) -> np.ndarray:
    """High-pass with 24 dB/octave below 200 to 600 Hz."""
    cutoff = 2 ** rng.uniform(np.log2(200), np.log2(600))
    return dsp.filtered(audio, dsp.biquad("highpass", cutoff, 0.9), dsp.biquad("highpass", cutoff, 0.6))


def bitcrush(audio: np.ndarray, rng: np.random.Generator, seconds_per_beat: float) -> np.ndarray:
    """Reduces the resolution to a few bits and repeats every second to fourth sample, with aliasing."""
    hold = int(rng.integers(2, 5))
    bits = int(rng.integers(4, 8))
    peak = max(1e-6, float(np.abs(audio).max()))
    steps = np.float32(2 ** (bits - 1) / peak)
    return np.resize(np.repeat(np.round(audio[::hold] * steps) / steps, hold), len(audio))


def _swept(
    audio: np.ndarray,
    lfo: Callable[[np.ndarray], np.ndarray],
    response: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Filters with a moving response: `lfo(time s)` in -1..1, complex `response(lfo (N, 1), frequency (1, F) Hz)`.

    Half-overlapping blocks of 43 ms under sine windows make the movement smooth and need only two batched FFTs; the
    response is computed for 65 values of the LFO and looked up.
    """
    half = SWEEP_BLOCK // 2
    blocks = -(-len(audio) // half) + 1
    padded = np.zeros((blocks + 1) * half, np.float32)
    padded[half : half + len(audio)] = audio
    window = np.sin(np.pi * (np.arange(SWEEP_BLOCK, dtype=np.float32) + 0.5) / SWEEP_BLOCK)
    spectra = np.fft.rfft(
        np.lib.stride_tricks.sliding_window_view(padded, SWEEP_BLOCK)[::half] * window, axis=1
    )
    place = np.rint(32 + 32 * lfo(np.arange(len(spectra)) * (half / SAMPLE_RATE))).astype(np.int64)
    frequency = np.linspace(0, dsp.NYQUIST, half + 1)[None, :]
    spectra *= response(np.linspace(-1, 1, 65)[:, None], frequency).astype(np.complex64)[place]
    shaped = np.fft.irfft(spectra, SWEEP_BLOCK, axis=1) * window
    output = np.zeros((len(shaped) + 1, half), np.float32)
    output[:-1] += shaped[:, :half]
    output[1:] += shaped[:, half:]
    return output.reshape(-1)[half : half + len(audio)]


def _sine(rate: float, phase: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda time: np.sin(2 * np.pi * (rate * time + phase))


def _resonant(ratio: np.ndarray, damping: float) -> np.ndarray:
    return 1 / (1 - ratio * ratio + 1j * damping * ratio)


def wah(audio: np.ndarray, rng: np.random.Generator, seconds_per_beat: float) -> np.ndarray:
    """Resonant band-pass with a moving centre, synchronised with the beat."""
    rate = float(rng.choice([0.5, 1.0, 2.0])) / seconds_per_beat
    damping = rng.uniform(0.25, 0.45)
    centre = rng.uniform(800, 1200)

    def response(place: np.ndarray, frequency: np.ndarray) -> np.ndarray:
        ratio = frequency / (centre * np.exp2(1.1 * place))
        return 1.8j * damping * ratio * _resonant(ratio, damping) + 0.15

    return _at_level(_swept(audio, _sine(rate, rng.random()), response), audio)


def autofilter(audio: np.ndarray, rng: np.random.Generator, seconds_per_beat: float) -> np.ndarray:
    """Resonant low-pass that opens and closes over four to thirty-two beats."""
    rate = 1 / (float(rng.choice([4, 8, 16, 32])) * seconds_per_beat)
    damping = rng.uniform(0.2, 0.6)
    centre = rng.uniform(900, 1500)

    def response(place: np.ndarray, frequency: np.ndarray) -> np.ndarray:
        ratio = frequency / (centre * np.exp2(1.9 * place))
        return _resonant(ratio, damping) * _resonant(ratio, 1.3)

    return _swept(audio, _sine(rate, rng.random()), response)


def phaser(audio: np.ndarray, rng: np.random.Generator, seconds_per_beat: float) -> np.ndarray:
    """Four moving all-pass stages mixed with the dry sound, which makes moving notches."""
    rate = rng.uniform(0.1, 0.8)
    centre = rng.uniform(600, 1000)

    def response(place: np.ndarray, frequency: np.ndarray) -> np.ndarray:
        ratio = 1j * frequency / (centre * np.exp2(1.3 * place))
        return 0.55 + 0.55 * ((1 - ratio) / (1 + ratio)) ** 4

    return _swept(audio, _sine(rate, rng.random()), response)


EFFECTS: dict[str, Callable[[np.ndarray, np.random.Generator, float], np.ndarray]] = {
    effect.__name__: effect
    for effect in (
        distortion, overdrive, chorus, tremolo, delay, lowpass, highpass, bitcrush, wah, phaser, vibrato, autofilter
    )
}  # fmt: skip


def apply(
    audio: np.ndarray, names: Sequence[str], rng: np.random.Generator, seconds_per_beat: float
) -> np.ndarray:
    """Applies the named effects in order. Raises `UserError` for a name that is not in `EFFECTS`."""
    for name in names:
        if name not in EFFECTS:
            raise UserError(f"{name!r} is not an effect; use one of {', '.join(EFFECTS)}")
        audio = EFFECTS[name](audio, rng, seconds_per_beat).astype(np.float32, copy=False)
    return audio


def ducking(kicks: Sequence[float], count: int, depth: float, seconds: float) -> np.ndarray:
    """Gain (count,) that falls by `depth` (0..1) at each kick (s) and recovers over `seconds`."""
    gain = np.ones(count, np.float32)
    length = round(seconds * SAMPLE_RATE)
    slope = 96
    dip = np.float32(1) - np.float32(depth) * (
        0.5 + 0.5 * np.cos(np.pi * np.linspace(0, 1, length, dtype=np.float32) ** 0.8)
    )
    shape = np.concatenate([np.linspace(1, dip[0], slope, dtype=np.float32), dip])
    for kick in kicks:
        start = round(kick * SAMPLE_RATE) - slope
        first = max(0, start)
        stop = min(count, start + len(shape))
        if stop > first:
            np.minimum(gain[first:stop], shape[first - start : stop - start], out=gain[first:stop])
    return gain


@functools.lru_cache(maxsize=len(_ROOMS) * ROOM_VARIANTS)
def room_response(room: str, variant: int) -> np.ndarray:
    """Impulse response of a room without the direct sound, float32, with unit energy.

    Early reflections are followed by noise in four bands, the higher ones with a shorter decay. Raises `UserError` for
    unknown rooms.
    """
    if room not in _ROOMS:
        raise UserError(f"{room!r} is not a room; use one of dry, {', '.join(_ROOMS)}")
    low, high, before, early = _ROOMS[room]
    rng = np.random.default_rng([sorted(_ROOMS).index(room), variant])
    size = 2 ** rng.uniform(-0.35, 0.35)
    count = round(0.9 * low * size * SAMPLE_RATE)
    tail = np.zeros(count, np.float32)
    edges = (120.0, 700.0, 2200.0, 5000.0, 10_000.0)
    for band, (bottom, top) in enumerate(pairwise(edges)):
        seconds = size * (low + (high - low) * band / 3)
        hiss = dsp.filtered(dsp.noise(rng, count), dsp.biquad("highpass", bottom), dsp.biquad("lowpass", top))
        tail += hiss / np.sqrt((hiss**2).mean()) * dsp.decay(count, seconds) * np.float32(0.8**band)
    dsp.attack(tail, 0.004 if room == "plate" else 0.3 * before + 0.002)
    response = np.zeros(count + round(0.06 * size * SAMPLE_RATE), np.float32)
    dsp.add_at(response, round(before * SAMPLE_RATE), tail / np.sqrt((tail**2).sum()), np.sqrt(1 - early))
    places = np.sort(rng.uniform(0.15, 1.6, 9)) * (before + 0.006) * size
    taps = rng.choice([-1.0, 1.0], 9) * np.exp(-places / (before + 0.01))
    taps *= np.sqrt(early / (taps**2).sum())
    for place, tap in zip(places, taps, strict=True):
        response[round(place * SAMPLE_RATE)] += tap
    return response / np.sqrt((response**2).sum())


def reverb(audio: np.ndarray, room: str, variant: int) -> np.ndarray:
    """The reverberation of (T,) in a room without the direct sound; silence for "dry"."""
    if room == "dry":
        return np.zeros_like(audio)
    spectrum, taps = _room_spectrum(room, variant % ROOM_VARIANTS)
    size = 2 * (spectrum.shape[0] - 1)
    hop = size - taps
    padded = np.zeros(taps + -(-len(audio) // hop) * hop, np.float32)
    padded[taps : taps + len(audio)] = audio
    segments = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    output = np.empty((len(segments), hop), np.float32)
    for row, segment in enumerate(segments):
        output[row] = np.fft.irfft(np.fft.rfft(segment) * spectrum, size)[taps:]
    return output.reshape(-1)[: len(audio)]


@functools.lru_cache(maxsize=len(_ROOMS) * ROOM_VARIANTS)
def _room_spectrum(room: str, variant: int) -> tuple[np.ndarray, int]:
    response = room_response(room, variant)
    size = max(16_384, 1 << (4 * len(response) - 1).bit_length() - 1)
    return np.fft.rfft(response, size), len(response)


def lofi(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Old tape and vinyl: narrow band, wow and flutter, saturation, crackle and hiss."""
    count = len(audio)
    wow = rng.uniform(10, 26) * (1 + _lfo(count, rng.uniform(0.4, 0.8), rng.random()))
    wow += rng.uniform(0.6, 1.6) * (1 + _lfo(count, rng.uniform(5, 8), rng.random()))
    worn = dsp.waveshape(dsp.delayed(audio, wow), 0.8 / max(1e-6, dsp.level(audio)) * 0.5)
    worn = dsp.filtered(
        worn,
        dsp.biquad("highpass", rng.uniform(60, 160)),
        dsp.biquad("lowpass", rng.uniform(3200, 5500), 0.8),
        dsp.biquad("lowpass", 6500, 0.6),
    )
    crackle = np.zeros(count, np.float32)
    pops = rng.integers(0, count, max(1, int(count / SAMPLE_RATE * rng.uniform(4, 18))))
    np.add.at(
        crackle, pops, (rng.standard_normal(len(pops)) * rng.exponential(1.0, len(pops))).astype(np.float32)
    )
    hiss = np.resize(dsp.noise(rng, 5 * SAMPLE_RATE), count) * np.float32(rng.uniform(0.006, 0.02))
    surface = dsp.filtered(crackle + hiss, dsp.biquad("bandpass", 2800, 0.5))
    loudness = dsp.level(audio)
    return _at_level(worn, audio) + surface * np.float32(loudness)


def tilt(audio: np.ndarray, brightness: float) -> np.ndarray:
    """Tilts the spectrum around 1 kHz: `brightness` 0 (dark) .. 0.5 (neutral) .. 1 (bright), up to 4.5 dB."""
    gain = 9.0 * (brightness - 0.5)
    if abs(gain) < 0.2:
        return audio
    return dsp.filtered(
        audio, dsp.biquad("lowshelf", 400, 0.5, -gain), dsp.biquad("highshelf", 2500, 0.5, gain)
    )
