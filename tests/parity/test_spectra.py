"""Spectra against torch.stft and librosa's mel filters."""

import numpy as np
import pytest

from melody_jax import spectral

torch = pytest.importorskip("torch", reason="parity needs: pip install melody_jax[parity]")
librosa = pytest.importorskip("librosa", reason="parity needs: pip install melody_jax[parity]")

AUDIO = 0.3 * np.random.default_rng(0).normal(size=(2, 9_600)).astype(np.float32)


@pytest.mark.parametrize(("n_fft", "hop", "win"), [(1024, 240, 1024), (512, 128, 256), (64, 16, 32)])
def test_stft(n_fft: int, hop: int, win: int, compare) -> None:
    theirs = torch.stft(
        torch.tensor(AUDIO), n_fft, hop, win, torch.hann_window(win), center=False, return_complex=True
    ).swapaxes(1, 2)
    compare(spectral.stft(AUDIO, n_fft, hop, win, center=False), theirs)


def test_mel_filters(compare) -> None:
    theirs = librosa.filters.mel(sr=24_000, n_fft=2048, n_mels=128)
    compare(spectral.mel_filterbank(128, 2048), theirs.T)
