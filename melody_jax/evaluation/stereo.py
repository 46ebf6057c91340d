"""The stereo image of a clip (T, 2): how wide it is, where it leans, and what is left of it in mono."""

import numpy as np

from melody_jax import loudness

NARROWEST_DB = -100.0
"""Width of a clip whose channels are equal, or silent, in place of -inf."""
LARGEST_LOSS = -60.0
"""Mono loss of a clip whose channels cancel, LU, in place of -inf."""

STEREO = ("width_db", "correlation", "balance_db", "mono_loss")
"""Metrics of the stereo image, nan for mono clips and for silence."""


def stereo_metrics(samples: np.ndarray, sample_rate: int) -> dict[str, float]:
    """Metrics of a clip, float32 (T, 2):

    width_db    power of the side signal (L - R) / 2 over that of the middle (L + R) / 2, dB: 0 for channels that have
                nothing in common, -100 (the least) for equal ones
    correlation of left and right, without a shift: 1 for equal channels, -1 for opposite ones; 0 if one is silent
    balance_db  level of left minus that of right, dB, within +-100
    mono_loss   loudness of the clip in mono (the mean in both channels) minus its own, LU: 0 for equal channels,
                -3 for channels that have nothing in common

    All are nan for digital silence, which has no image.
    """
    if not samples.any():
        return dict.fromkeys(STEREO, np.nan)
    left, right = samples.astype(np.float64).T
    powers = np.mean(left**2), np.mean(right**2)
    product = np.sqrt(powers[0] * powers[1])
    return {
        "width_db": width_db(samples),
        "correlation": float(np.mean(left * right) / product) if product > 0 else 0.0,
        "balance_db": _ratio_db(*powers),
        "mono_loss": _mono_loss(samples, sample_rate),
    }


def width_db(samples: np.ndarray) -> float:
    """Width of a clip (T, 2), dB: see `stereo_metrics`; -100 for silence."""
    left, right = samples.astype(np.float64).T
    side = np.mean((left - right) ** 2)
    return _ratio_db(side, np.mean((left + right) ** 2)) if side > 0 else NARROWEST_DB


def _mono_loss(samples: np.ndarray, sample_rate: int) -> float:
    stereo = loudness.integrated(samples, sample_rate)
    if not np.isfinite(stereo):
        return 0.0
    middle = samples.mean(axis=1, dtype=np.float32)
    mixed = loudness.integrated(np.stack([middle, middle], axis=1), sample_rate)
    return max(mixed - stereo, LARGEST_LOSS)


def _ratio_db(power: float, other: float) -> float:
    """10 log10(power / other), limited to +-100; 0 if both are 0."""
    if power == other:
        return 0.0
    bound = -NARROWEST_DB
    return float(np.clip(10 * np.log10(max(power, 1e-30) / max(other, 1e-30)), -bound, bound))
