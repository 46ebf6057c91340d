"""A dual-path diffusion for one GPU and a day: 256 semantic tokens to 512 latents of 64 channels, 10.24 s.

melody train dpd_small --data.folder features/train --workdir runs/dpd_small
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig, with_fields
from melody_jax.models import dpd
from melody_jax.training.stages.dpd import DPDStage


def config() -> TrainConfig:
    """4 blocks of width 256, on the latents of `vae_small`. This size is untrained so far."""
    model = with_fields(dpd.SMALL, dtype="bfloat16", remat="blocks")
    return TrainConfig(
        stage=DPDStage(model=model, shared_angle=0.3, clean_prefix=0.2),
        data=DataConfig(batch_size=32, window_tokens=256),
        optimizer=OptimizerConfig(learning_rate=2e-3, muon=True, warmup_steps=500),
        steps=50_000,
        eval_every=1_000,
        workdir="runs/dpd_small",
    )
