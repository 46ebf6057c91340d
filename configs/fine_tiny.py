"""The fine acoustic model at the size of the tests: 2 x 16 coarse codes to 16 others.

melody train fine_tiny --data.folder features/codes --workdir runs/fine_tiny
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
        prefix_levels=0,
        semantic_vocab=16,
        code_levels=1,
        condition=Condition(length=32, ids=16, levels=2),
    )
    return TrainConfig(
        stage=AcousticStage(part="fine", model=model, coarse_levels=2, frames_per_token=1),
        data=DataConfig(batch_size=8, window_tokens=16),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
        steps=300,
        workdir="runs/fine_tiny",
    )
