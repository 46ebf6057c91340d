"""How close a clip is to its original: by frequency band, in the bass, in level, and between left and right. NumPy.

Log-mel distances do not show whether the bass survives: below 300 Hz, mel bands are wider than the intervals of a
bass line. These measures use a window of 341 ms (8,192 samples at 24 kHz, bins of 2.9 Hz).

A wave is (T,), at 24 kHz unless it says so; a `Sound` is in any format.

T samples, F frames, N clips.
"""

import numpy as np

from melody_jax import spectral
from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.errors import UserError
from melody_jax.evaluation import events, stereo
from melody_jax.evaluation.intervals import Interval, mean_interval
from melody_jax.evaluation.signal import longest_silence
from melody_jax.evaluation.sound import Sound

WINDOW = 8_192
"""Samples in a frame at 24 kHz; as long at other rates."""
HOP = 1_200
"""Samples between frames at 24 kHz."""
BANDS = {
    "30-80 Hz": (30.0, 80.0),
    "80-300 Hz": (80.0, 300.0),
    "300-1k Hz": (300.0, 1_000.0),
    "1-4k Hz": (1_000.0, 4_000.0),
    "4-12k Hz": (4_000.0, 12_000.0),
    "12-20k Hz": (12_000.0, 20_000.0),
}
"""Name of a band -> its ends, Hz; the last needs a sample rate of at least 40 kHz."""
FLOOR_DB = -80.0
"""Lowest level of a bin, dB relative to a sine of full scale: quieter bins are equal."""
BASS_HZ = (40.0, 250.0)
"""Where the pitch of the bass is searched."""
QUIETEST_NOTE_DB = -50.0
"""Lowest level of a bass note, dB relative to a sine of full scale."""
PROMINENCE_DB = 15.0
"""How far a bass note stands out from the median bin of `BASS_HZ`, dB."""
TOLERANCE_CENTS = 50.0
"""Pitches within this distance agree."""
LONG_SILENCE = 2.0
"""Seconds of silence without a break from which on a clip has fallen silent."""
TITLES = {
    "bass_agreement": "bass agreement",
    "note_agreement": "note agreement",
    "attack_agreement": "attack agreement",
    "steady_bass": "steady bass",
    "level_difference": "level, dB",
    "fallen_silent": "fallen silent",
    **{name: f"{name}, dB" for name in BANDS},
    "side_error": "side, dB",
    "width_difference": "width, dB",
}
"""Name of a measure -> its title in tables."""


def levels(wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Levels (F, window // 2 + 1) of the bins, dB relative to a sine of full scale.

    Frames lie inside the clip. Raises `UserError` if it is shorter than one.
    """
    size, hop = _frame(sample_rate)
    if wave.ndim != 1 or len(wave) < size:
        raise UserError(f"audio of shape {wave.shape}: it must be (T,), T at least {size}")
    frames = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float32), size)[::hop]
    window = spectral.hann(size)
    magnitudes = np.abs(np.fft.rfft(frames * window, axis=-1)) * 2 / window.sum()
    return 20 * np.log10(np.maximum(magnitudes, 1e-10))


def band_errors(clip: np.ndarray, original: np.ndarray, sample_rate: int = SAMPLE_RATE) -> dict[str, float]:
    """Band -> mean distance of the bins' levels, dB, floored at -80 dB. 2 dB more or less in all bins read 2.

    nan for a band that the sample rate does not hold. Raises `UserError` if the lengths differ, or are less than one
    frame.
    """
    _check_pair(clip, original)
    floored = [np.maximum(levels(wave, sample_rate), FLOOR_DB) for wave in (clip, original)]
    distance = np.abs(floored[0] - floored[1]).mean(axis=0)
    frequencies = np.fft.rfftfreq(_frame(sample_rate)[0], 1 / sample_rate)
    return {
        name: float(distance[(frequencies >= low) & (frequencies < high)].mean())
        if high <= sample_rate / 2
        else np.nan
        for name, (low, high) in BANDS.items()
    }


def side_error(clip: Sound, original: Sound) -> float:
    """Mean over bands of the error of the side signal, dB; nan for mono. Raises `UserError` as `band_errors`."""
    if clip.side is None or original.side is None:
        return np.nan
    errors = band_errors(clip.side, original.side, clip.audio_format.sample_rate)
    return float(np.nanmean(list(errors.values())))


def width_difference(clip: Sound, original: Sound) -> float:
    """Width of the clip minus that of the original (`stereo.stereo_metrics`), dB; nan for mono."""
    if clip.side is None or original.side is None:
        return np.nan
    widths = [stereo.width_db(sound.samples) for sound in (clip, original)]
    return widths[0] - widths[1]


def bass_pitch(wave: np.ndarray, notes_only: bool = True) -> np.ndarray:
    """Frequency (F,) of each frame's strongest peak from 40 to 250 Hz, in Hz, interpolated between bins.

    It is nan where there is none. notes_only: also where the peak is no note, that is, below -50 dB relative to a sine
    of full scale, or not 15 dB above the median bin of the range.
    """
    size = levels(wave)
    first = int(np.ceil(BASS_HZ[0] * WINDOW / SAMPLE_RATE))
    last = int(BASS_HZ[1] * WINDOW / SAMPLE_RATE)
    middle = size[:, first : last + 1]
    below = size[:, first - 1 : last]
    above = size[:, first + 1 : last + 2]
    peaks = np.where((middle > below) & (middle >= above), middle, -np.inf)
    strongest = peaks.argmax(axis=1)[:, None]
    level, left, right = (np.take_along_axis(x, strongest, axis=1)[:, 0] for x in (peaks, below, above))
    is_peak = np.isfinite(level)
    if notes_only:
        is_peak &= (level >= QUIETEST_NOTE_DB) & (level >= np.median(middle, axis=1) + PROMINENCE_DB)
    curvature = np.where(is_peak, left - 2 * level + right, -1.0)
    offset = np.where(is_peak, 0.5 * (left - right) / np.minimum(curvature, -1e-9), 0.0)
    pitch = (first + strongest[:, 0] + offset) * SAMPLE_RATE / WINDOW
    return np.where(is_peak, pitch, np.nan)


def bass_agreement(clip: np.ndarray, original: np.ndarray) -> float:
    """Share of the original's frames with a bass note in which the clip's strongest bass peak has that pitch.

    That is, within 50 cents; see `bass_pitch`. nan if the original has no bass note. Raises `UserError` if the lengths
    differ, or are less than one frame.
    """
    _check_pair(clip, original)
    target = bass_pitch(original)
    has_note = ~np.isnan(target)
    if not has_note.any():
        return np.nan
    return float(np.mean(_agree(bass_pitch(clip, notes_only=False)[has_note], target[has_note])))


def steady_bass(wave: np.ndarray) -> float:
    """Share of frames, from the second on, whose bass note has the pitch of the frame before it, within 50 cents."""
    pitch = bass_pitch(wave)
    return float(np.mean(_agree(pitch[1:], pitch[:-1]))) if len(pitch) > 1 else 0.0


def level_difference(clip: np.ndarray, original: np.ndarray) -> float:
    """Level of the clip minus that of the original, dB of RMS of all channels; nan if the original is digital
    silence."""
    original_rms = _rms(original)
    return float(20 * np.log10(max(_rms(clip), 1e-10) / original_rms)) if original_rms else np.nan


def measures(clip: Sound, original: Sound, aligned: bool) -> dict[str, float]:
    """The measures in `TITLES` of a clip; "fallen_silent" is 0 or 1. Bands are those of the mean of the channels.

    aligned: whether the clip follows the original in time. If not, the agreements, the bands and the side error are
    nan. Raises `UserError` if the formats differ.
    """
    if clip.audio_format != original.audio_format:
        raise UserError(
            f"the clip is {clip.audio_format}, its original {original.audio_format}: not the same"
        )
    mono = clip.to()
    values = dict.fromkeys(TITLES, np.nan) | {
        "steady_bass": steady_bass(mono),
        "level_difference": level_difference(clip.samples, original.samples),
        "fallen_silent": float(longest_silence(mono) >= LONG_SILENCE),
        "width_difference": width_difference(clip, original),
    }
    return values | (_aligned_measures(clip, original) if aligned else {})


def _aligned_measures(clip: Sound, original: Sound) -> dict[str, float]:
    mono = clip.to()
    truth = original.to()
    return {
        "bass_agreement": bass_agreement(mono, truth),
        "note_agreement": events.note_agreement(levels(mono), levels(truth)),
        "attack_agreement": events.attack_agreement(mono, truth),
        **band_errors(clip.mono, original.mono, clip.audio_format.sample_rate),
        "side_error": side_error(clip, original),
    }


def summarise(columns: dict[str, np.ndarray], draws: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """The mean of each measure (N,) over the clips where it is not nan; without those that are nan everywhere.

    draws, seed: number and seed of the bootstrap resamples per interval.
    """
    values = {name: column[~np.isnan(column)] for name, column in columns.items()}
    return {name: mean_interval(column, draws, seed) for name, column in values.items() if len(column)}


def markdown(stages: dict[str, dict[str, Interval]]) -> str:
    """Stage -> summary, as a Markdown table with one row per stage and the measures that any stage has."""
    titles = {
        name: title for name, title in TITLES.items() if any(name in summary for summary in stages.values())
    }
    lines = ["| entry stage | " + " | ".join(titles.values()) + " |", "| --- |" + " --- |" * len(titles)]
    for stage, summary in stages.items():
        cells = [f"{summary[name].value:.3g}" if name in summary else "" for name in titles]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _agree(pitch: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Whether pitches are within the tolerance; nan agrees with nothing."""
    return np.abs(1200 * np.log2(pitch / target)) <= TOLERANCE_CENTS


def _frame(sample_rate: int) -> tuple[int, int]:
    """Samples in a frame, an even number, and between frames."""
    scale = sample_rate / SAMPLE_RATE
    return 2 * round(WINDOW / 2 * scale), round(HOP * scale)


def _rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


def _check_pair(clip: np.ndarray, original: np.ndarray) -> None:
    if clip.shape != original.shape:
        raise UserError(f"audio of shapes {clip.shape} and {original.shape}: they must be equal, (T,)")
