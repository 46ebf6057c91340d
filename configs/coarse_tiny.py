"""The coarse acoustic model at the size of the tests: 16 semantic tokens to 2 x 16 codes.

melody train coarse_tiny --data.folder features/codes --workdir runs/coarse_tiny
"""

from dataclasses import replace

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.lm_config import TINY, Condition
from melody_jax.training.stages.acoustic import AcousticStage


def config() -> TrainConfig:
    """2 layers of width 64, for the codes of `codec_tiny.py`."""
    model = replace(
        TINY,
        recall=False,
        prefix_everywhere=False,
        semantic_vocab=16,
        code_levels=2,
        condition=Condition(length=16, ids=64),
    )
    return TrainConfig(
        stage=AcousticStage(part="coarse", model=model, coarse_levels=2, frames_per_token=1),
        data=DataConfig(batch_size=8, window_tokens=16),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
        steps=300,
        workdir="runs/coarse_tiny",
    )
