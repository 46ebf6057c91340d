"""The dual-path diffusion of `mini`: 256 semantic tokens to 256 latents of 64 channels, 10.24 s.

melody train dpd_mini --data.folder features/mini --workdir runs/dpd_mini
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.dpd import MINI
from melody_jax.training.stages.dpd import DPDStage


def config() -> TrainConfig:
    """4 blocks of width 192; 6.3 M parameters, 4.8 GFLOP per pass, 0.12 TFLOP per step."""
    return TrainConfig(
        stage=DPDStage(model=MINI, shared_angle=0.5, clean_prefix=0.2, token_corruption=0.03),
        data=DataConfig(batch_size=8, window_tokens=256, text_prefix_probability=0.5),
        optimizer=OptimizerConfig(learning_rate=3e-3, muon=True, warmup_steps=60),
        steps=1_500,
        eval_every=100,
        ema_decay=0.998,
        workdir="runs/dpd_mini",
    )
