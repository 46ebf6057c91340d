"""The language model at the size of the tests: a run takes seconds.

melody train lm_tiny --data.folder features/tiny --workdir runs/lm_tiny
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.lm_config import TINY
from melody_jax.training.stages.lm import LMStage


def config() -> TrainConfig:
    """2 layers of width 64; 0.1 M parameters in the blocks."""
    return TrainConfig(
        stage=LMStage(model=TINY),
        data=DataConfig(batch_size=8, window_tokens=80),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
        steps=100,
        eval_every=50,
        workdir="runs/lm_tiny",
    )
