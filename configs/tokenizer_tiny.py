"""The semantic tokenizer at the size of the tests: a run takes seconds.

melody train tokenizer_tiny --data.folder corpus/tiny --workdir runs/tokenizer_tiny
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.tokenizer import TINY
from melody_jax.training.stages.tokenizer import TokenizerStage


def config() -> TrainConfig:
    """2 layers of width 32 and 64 clusters."""
    return TrainConfig(
        stage=TokenizerStage(model=TINY, codes=64, cluster_frames=2000),
        data=DataConfig(batch_size=4, crop_samples=30_720),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=10),
        steps=50,
        eval_every=25,
        workdir="runs/tokenizer_tiny",
    )
