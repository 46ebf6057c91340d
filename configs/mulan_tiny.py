"""MuLan at the size of the tests: one layer per tower, random weights.

    melody train mulan_tiny --data.folder corpus/train

Expect the loss to fall within 50 steps; the result is of no use.
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.mulan import TINY
from melody_jax.training.stages.mulan import MuLanStage


def config() -> TrainConfig:
    """16 clips of 2.56 s per step."""
    return TrainConfig(
        stage=MuLanStage(model=TINY, fit_batches=16, fit_iterations=5),
        data=DataConfig(batch_size=16, crop_samples=61_440, text_length=40),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=10),
        steps=50,
        log_every=10,
        eval_every=25,
        eval_batches=2,
        save_every=25,
        ema_decay=0.9,
        workdir="runs/mulan_tiny",
    )
