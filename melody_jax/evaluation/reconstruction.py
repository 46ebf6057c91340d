"""Reconstruction quality of decoded audio, in NumPy, for reports. Audio is (T,) or (B, T) in [-1, 1]."""

import numpy as np

from melody_jax import spectral
from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.errors import UserError


def si_sdr(estimate: np.ndarray, reference: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (arXiv 1811.02508), averaged over the batch; means are
    not removed.

    It is sensitive to phase. Raises `UserError` if the shapes differ.
    """
    estimate, reference = _pair(estimate, reference)
    gain = np.sum(estimate * reference, -1, keepdims=True) / (np.sum(reference**2, -1, keepdims=True) + 1e-12)
    signal = gain * reference
    error = estimate - signal
    ratio = (np.sum(signal**2, -1) + 1e-12) / (np.sum(error**2, -1) + 1e-12)
    return float(np.mean(10 * np.log10(ratio)))


def log_mel(audio: np.ndarray, n_mels: int = 80, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """`spectral.log_mel` in NumPy: (B, T) -> (B, T // hop, n_mels) nepers, floored at 1e-5.

    Windows of 43 ms every 10 ms at any rate: n_fft 1024 and hop 240 at 24 kHz.
    """
    n_fft, hop = spectral.mel_frame(sample_rate)
    frames = audio.shape[-1] // hop
    padded = np.pad(audio, ((0, 0), ((n_fft - hop) // 2, n_fft)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=-1)[:, ::hop][:, :frames]
    magnitudes = np.abs(np.fft.rfft(windows * spectral.hann(n_fft), axis=-1))
    return np.log(np.maximum(magnitudes @ spectral.mel_filterbank(n_mels, n_fft, sample_rate), 1e-5))


def log_mel_l1(estimate: np.ndarray, reference: np.ndarray, sample_rate: int = SAMPLE_RATE) -> float:
    """Mean absolute difference of log mel magnitudes (80 bands, windows of 43 ms every 10 ms), nepers. It ignores
    phase.

    Raises `UserError` if the shapes differ.
    """
    estimate, reference = _pair(estimate, reference)
    return float(
        np.mean(
            np.abs(log_mel(estimate, sample_rate=sample_rate) - log_mel(reference, sample_rate=sample_rate))
        )
    )


def _pair(estimate: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if estimate.shape != reference.shape or estimate.ndim not in (1, 2):
        raise UserError(
            f"audio of shapes {estimate.shape} and {reference.shape}: they must be equal, (T,) or (B, T)"
        )
    return np.atleast_2d(estimate).astype(np.float64), np.atleast_2d(reference).astype(np.float64)
