"""Dual-path diffusion at the size of the tests: a run takes seconds.

melody train dpd_tiny --data.folder features/tiny --workdir runs/dpd_tiny
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.dpd import TINY
from melody_jax.training.stages.dpd import DPDStage


def config() -> TrainConfig:
    """2 blocks of width 32; 0.2 M parameters, 0.03 GFLOP per pass."""
    return TrainConfig(
        stage=DPDStage(model=TINY, shared_angle=0.3, clean_prefix=0.2),
        data=DataConfig(batch_size=8, window_tokens=80),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
        steps=100,
        eval_every=50,
        workdir="runs/dpd_tiny",
    )
