"""The paper's spectral loss, resolution by resolution, against auraloss."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.config import load_config
from melody_jax.training.stages.vae import VAEStage

torch = pytest.importorskip("torch", reason="parity needs: pip install melody_jax[parity]")
auraloss = pytest.importorskip("auraloss", reason="parity needs: pip install melody_jax[parity]")

LENGTH = 24_576
STAGE = load_config(Path(__file__).parents[2] / "configs" / "vae_paper.py").stage
assert isinstance(STAGE, VAEStage)


@pytest.mark.parametrize(("n_fft", "hop"), STAGE.resolutions)
def test_magnitude_l1(n_fft, hop, compare) -> None:
    """Frames of theirs lie half a hop before ours, and are one more: silence at both ends makes up for it."""
    rng = np.random.default_rng(0)
    silent = 4_096
    waves = rng.standard_normal((2, 2, LENGTH)).astype(np.float32) * 0.1
    waves[..., :silent] = waves[..., -silent:] = 0
    ours = replace(STAGE, resolutions=((n_fft, hop),))._spectral_loss(
        jnp.asarray(waves[0]), jnp.asarray(waves[1])
    )[1]["linear"]
    loss = auraloss.freq.STFTLoss(n_fft, hop, n_fft // 2, w_sc=0.0, w_log_mag=0.0, w_lin_mag=1.0)
    earlier = torch.tensor(np.roll(waves, -(hop // 2), axis=-1))
    theirs = loss(earlier[0][:, None], earlier[1][:, None])
    compare(ours * (LENGTH // hop), theirs * (LENGTH // hop + 1))
