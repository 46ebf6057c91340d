"""Effects of the renderer: saturation, modulation, echoes, sweeps, ducking and lo-fi.

The effects of a track take and return one channel, float32 (T,). `apply` runs them by name. The details (rates, depths,
cutoffs) are drawn from the random generator of the `Rack`: a seed determines them, and both sides of stereo share them.
Those in `STEREO` differ between the sides, and so make stereo of a single channel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from melody_jax.composer import dsp
from melody_jax.composer.clock import Clock
from melody_jax.composer.stereo import RIGHT
from melody_jax.errors import UserError

HALF_SWEEP = 512
STEREO = frozenset(("chorus", "tremolo", "delay", "autofilter", "phaser"))


@dataclass(frozen=True)
class Rack:
    """What the effects of a track need: clock, random generator, length of a beat, and their side of stereo."""

    clock: Clock
    rng: np.random.Generator
    seconds_per_beat: float
    side: int | None = None
    """`LEFT`, `RIGHT`, or None in mono."""

    @property
    def turn(self) -> float:
        """Cycles by which an oscillator of the right side is ahead of the left one's."""
        return 0.25 if self.side == RIGHT else 0.0


def _lfo(rack: Rack, count: int, rate: float, phase: float) -> np.ndarray:
    return np.sin(np.float32(2 * np.pi * rate) * rack.clock.times(count) + np.float32(2 * np.pi * phase))


def _at_level(rack: Rack, audio: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`audio` scaled to the level of `like`."""
    return audio * np.float32(rack.clock.level(like) / max(1e-6, rack.clock.level(audio)))


def _cabinet(audio: np.ndarray, rack: Rack) -> np.ndarray:
    top = rack.rng.uniform(3600, 5200)
    return dsp.filtered(
        audio,
        rack.clock.biquad("highpass", rack.rng.uniform(70, 110), 0.8),
        rack.clock.biquad("peak", rack.rng.uniform(1800, 2800), 1.0, rack.rng.uniform(2, 6)),
        rack.clock.biquad("lowpass", top, 0.9),
        rack.clock.biquad("lowpass", 1.15 * top, 0.6),
    )


def _driven(audio: np.ndarray, rack: Rack, drive: float, low_cut: float) -> np.ndarray:
    """Two stages of saturation and a loudspeaker cabinet; the level is preserved, the dynamics are reduced."""
    loudness = rack.clock.level(audio)
    if loudness < 1e-6:
        return audio
    shaped = dsp.filtered(audio, rack.clock.biquad("highpass", low_cut, 0.7))
    shaped = dsp.waveshape(shaped, drive / loudness)
    return _at_level(rack, _cabinet(dsp.waveshape(shaped + np.float32(0.08), 1.6), rack), audio)


def distortion(audio: np.ndarray, rack: Rack) -> np.ndarray:
    """High-gain amplifier with a cabinet."""
    return _driven(audio, rack, rack.rng.uniform(6, 16), 140)


def overdrive(audio: np.ndarray, rack: Rack) -> np.ndarray:
    """Valve-like saturation with a cabinet; soft notes stay clean."""
    return _driven(audio, rack, rack.rng.uniform(0.9, 2.2), 80)


def chorus(audio: np.ndarray, rack: Rack) -> np.ndarray:
    """Two delayed copies with slowly varying pitch."""
    rate = rack.rng.uniform(0.3, 1.2)
    millisecond = rack.clock.sample_rate / 1000
    depth = rack.rng.uniform(1.0, 3.0) * millisecond
    first = dsp.delayed(
        audio, 12 * millisecond + depth * _lfo(rack, len(audio), rate, rack.rng.random() + rack.turn)
    )
    second = dsp.delayed(
        audio, 19 * millisecond + depth * _lfo(rack, len(audio), 1.31 * rate, rack.rng.random() + rack.turn)
    )
    return 0.7 * audio + 0.45 * first + 0.45 * second


def vibrato(audio: np.ndarray, rack: Rack) -> np.ndarray:
    """Periodic variation of the pitch by up to about a third of a semitone."""
    rate = rack.rng.uniform(4.2, 6.2)
    depth = rack.rng.uniform(0.006, 0.018) / (2 * np.pi * rate) * rack.clock.sample_rate
    return dsp.delayed(audio, depth * (1 + _lfo(rack, len(audio), rate, rack.rng.random())))


def tremolo(audio: np.ndarray, rack: Rack) -> np.ndarray:
    """Periodic variation of the loudness, synchronised with the beat or free."""
    rate = (
        float(rack.rng.choice([2, 3, 4])) / rack.seconds_per_beat
        if rack.rng.random() < 0.6
        else rack.rng.uniform(4, 7)
    )
    depth = rack.rng.uniform(0.35, 0.8)
    return audio * (
        1 - np.float32(depth) * (0.5 + 0.5 * _lfo(rack, len(audio), min(rate, 12.0), 0.25 + rack.turn))
    )


def delay(audio: np.ndarray, rack: Rack) -> np.ndarray:
    """Echoes after half, three quarters or one beat, with less treble; in stereo they jump from left to right."""
    lag = round(float(rack.rng.choice([0.5, 0.75, 1.0])) * rack.seconds_per_beat * rack.clock.sample_rate)
    feedback = rack.rng.uniform(0.3, 0.55)
    wet = rack.rng.uniform(0.3, 0.5)
    output = audio.copy()
    echo = dsp.filtered(
        audio, rack.clock.biquad("lowpass", rack.rng.uniform(2500, 5000)), rack.clock.biquad("highpass", 180)
    )
    softened = (echo + np.roll(echo, 1)) * np.float32(0.5)
    for repeat in range(1, 6):
        gain = wet * feedback ** (repeat - 1)
        if rack.side is not None and repeat % 2 == rack.side:
            gain *= 0.25
        dsp.add_at(output, repeat * lag, echo if repeat == 1 else softened, gain)
    return output


def lowpass(audio: np.ndarray, rack: Rack) -> np.ndarray:
    """Low-pass with 24 dB/octave above 700 to 2200 Hz."""
    cutoff = 2 ** rack.rng.uniform(np.log2(700), np.log2(2200))
    return dsp.filtered(
        audio, rack.clock.biquad("lowpass", cutoff, 1.1), rack.clock.biquad("lowpass", cutoff, 0.6)
    )


def highpass(audio: np.ndarray, rack: Rack) -> np.ndarray:
    """High-pass with 24 dB/octave below 200 to 600 Hz."""
    cutoff = 2 ** rack.rng.uniform(np.log2(200), np.log2(600))
    return dsp.filtered(
        audio, rack.clock.biquad("highpass", cutoff, 0.9), rack.clock.biquad("highpass", cutoff, 0.6)
    )


def bitcrush(audio: np.ndarray, rack: Rack) -> np.ndarray:
    """Reduces the resolution to a few bits and holds samples at 6 to 12 kHz, with aliasing."""
    hold = max(1, round(int(rack.rng.integers(2, 5)) * rack.clock.ratio))
    bits = int(rack.rng.integers(4, 8))
    peak = max(1e-6, float(np.abs(audio).max()))
    steps = np.float32(2 ** (bits - 1) / peak)
    return np.resize(np.repeat(np.round(audio[::hold] * steps) / steps, hold), len(audio))


def _swept(
    rack: Rack,
    audio: np.ndarray,
    lfo: Callable[[np.ndarray], np.ndarray],
    response: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Filters with a moving response: `lfo(time s)` in -1..1, complex `response(lfo (N, 1), frequency (1, F) Hz)`.

    Half-overlapping blocks of 43 ms under sine windows make the movement smooth and need only two batched FFTs; the
    response is computed for 65 values of the LFO and looked up.
    """
    half = round(rack.clock.ratio * HALF_SWEEP)
    blocks = -(-len(audio) // half) + 1
    padded = np.zeros((blocks + 1) * half, np.float32)
    padded[half : half + len(audio)] = audio
    window = np.sin(np.pi * (np.arange(2 * half, dtype=np.float32) + 0.5) / (2 * half))
    spectra = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, 2 * half)[::half] * window, axis=1)
    place = np.rint(32 + 32 * lfo(np.arange(len(spectra)) * (half / rack.clock.sample_rate))).astype(np.int64)
    frequency = np.linspace(0, rack.clock.nyquist, half + 1)[None, :]
    spectra *= response(np.linspace(-1, 1, 65)[:, None], frequency).astype(np.complex64)[place]
    shaped = np.fft.irfft(spectra, 2 * half, axis=1) * window
    output = np.zeros((len(shaped) + 1, half), np.float32)
    output[:-1] += shaped[:, :half]
    output[1:] += shaped[:, half:]
    return output.reshape(-1)[half : half + len(audio)]


def _sine(rate: float, phase: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda time: np.sin(2 * np.pi * (rate * time + phase))


def _resonant(ratio: np.ndarray, damping: float) -> np.ndarray:
    return 1 / (1 - ratio * ratio + 1j * damping * ratio)


def wah(audio: np.ndarray, rack: Rack) -> np.ndarray:
    """Resonant band-pass with a moving centre, synchronised with the beat."""
    rate = float(rack.rng.choice([0.5, 1.0, 2.0])) / rack.seconds_per_beat
    damping = rack.rng.uniform(0.25, 0.45)
    centre = rack.rng.uniform(800, 1200)

    def response(place: np.ndarray, frequency: np.ndarray) -> np.ndarray:
        ratio = frequency / (centre * np.exp2(1.1 * place))
        return 1.8j * damping * ratio * _resonant(ratio, damping) + 0.15

    return _at_level(rack, _swept(rack, audio, _sine(rate, rack.rng.random()), response), audio)


def autofilter(audio: np.ndarray, rack: Rack) -> np.ndarray:
    """Resonant low-pass that opens and closes over four to thirty-two beats."""
    rate = 1 / (float(rack.rng.choice([4, 8, 16, 32])) * rack.seconds_per_beat)
    damping = rack.rng.uniform(0.2, 0.6)
    centre = rack.rng.uniform(900, 1500)

    def response(place: np.ndarray, frequency: np.ndarray) -> np.ndarray:
        ratio = frequency / (centre * np.exp2(1.9 * place))
        return _resonant(ratio, damping) * _resonant(ratio, 1.3)

    return _swept(rack, audio, _sine(rate, rack.rng.random() + rack.turn), response)


def phaser(audio: np.ndarray, rack: Rack) -> np.ndarray:
    """Four moving all-pass stages mixed with the dry sound, which makes moving notches."""
    rate = rack.rng.uniform(0.1, 0.8)
    centre = rack.rng.uniform(600, 1000)

    def response(place: np.ndarray, frequency: np.ndarray) -> np.ndarray:
        ratio = 1j * frequency / (centre * np.exp2(1.3 * place))
        return 0.55 + 0.55 * ((1 - ratio) / (1 + ratio)) ** 4

    return _swept(rack, audio, _sine(rate, rack.rng.random() + rack.turn), response)


EFFECTS: dict[str, Callable[[np.ndarray, Rack], np.ndarray]] = {
    effect.__name__: effect
    for effect in (
        distortion, overdrive, chorus, tremolo, delay, lowpass, highpass, bitcrush, wah, phaser, vibrato, autofilter
    )
}  # fmt: skip


def apply(audio: np.ndarray, names: Sequence[str], rack: Rack) -> np.ndarray:
    """Applies the named effects in order. Raises `UserError` for a name that is not in `EFFECTS`."""
    for name in names:
        if name not in EFFECTS:
            raise UserError(f"{name!r} is not an effect; use one of {', '.join(EFFECTS)}")
        audio = EFFECTS[name](audio, rack).astype(np.float32, copy=False)
    return audio


def ducking(clock: Clock, kicks: Sequence[float], count: int, depth: float, seconds: float) -> np.ndarray:
    """Gain (count,) that falls by `depth` (0..1) at each kick (s) and recovers over `seconds`."""
    gain = np.ones(count, np.float32)
    length = clock.samples(seconds)
    slope = clock.samples(0.004)
    dip = np.float32(1) - np.float32(depth) * (
        0.5 + 0.5 * np.cos(np.pi * np.linspace(0, 1, length, dtype=np.float32) ** 0.8)
    )
    shape = np.concatenate([np.linspace(1, dip[0], slope, dtype=np.float32), dip])
    for kick in kicks:
        start = clock.samples(kick) - slope
        first = max(0, start)
        stop = min(count, start + len(shape))
        if stop > first:
            np.minimum(gain[first:stop], shape[first - start : stop - start], out=gain[first:stop])
    return gain


def lofi(channels: np.ndarray, rack: Rack) -> np.ndarray:
    """Old tape and vinyl for (C, T): narrow band, wow and flutter, saturation, crackle and hiss."""
    count = channels.shape[1]
    rng = rack.rng
    clock = rack.clock
    wow = rng.uniform(10, 26) * clock.ratio * (1 + _lfo(rack, count, rng.uniform(0.4, 0.8), rng.random()))
    wow += rng.uniform(0.6, 1.6) * clock.ratio * (1 + _lfo(rack, count, rng.uniform(5, 8), rng.random()))
    moved = np.stack([dsp.delayed(channel, wow) for channel in channels])
    worn = dsp.filtered(
        dsp.waveshape(moved, 0.8 / max(1e-6, clock.level(channels)) * 0.5),
        clock.biquad("highpass", rng.uniform(60, 160)),
        clock.biquad("lowpass", rng.uniform(3200, 5500), 0.8),
        clock.biquad("lowpass", 6500, 0.6),
    )
    surface = _surface(rack, count)
    if len(channels) > 1:
        surface = np.stack([surface, surface[::-1]])  # a second noise of the same kind
    return _at_level(rack, worn, channels) + surface * np.float32(clock.level(channels))


def _surface(rack: Rack, count: int) -> np.ndarray:
    """Noise of a record's surface, (count,), for music of unit level."""
    rng = rack.rng
    clock = rack.clock
    crackle = np.zeros(count, np.float32)
    pops = rng.integers(0, count, max(1, int(count / clock.sample_rate * rng.uniform(4, 18))))
    clicks = rng.standard_normal(len(pops)) * rng.exponential(1.0, len(pops)) * clock.ratio
    np.add.at(crackle, pops, clicks.astype(np.float32))
    hiss = np.resize(clock.noise(rng, clock.samples(5)), count) * np.float32(rng.uniform(0.006, 0.02))
    return dsp.filtered(crackle + hiss, clock.biquad("bandpass", 2800, 0.5))


def tilt(clock: Clock, audio: np.ndarray, brightness: float) -> np.ndarray:
    """Tilts (..., T) around 1 kHz: `brightness` 0 (dark) .. 0.5 (neutral) .. 1 (bright), up to 4.5 dB."""
    gain = 9.0 * (brightness - 0.5)
    if abs(gain) < 0.2:
        return audio
    return dsp.filtered(
        audio, clock.biquad("lowshelf", 400, 0.5, -gain), clock.biquad("highshelf", 2500, 0.5, gain)
    )
