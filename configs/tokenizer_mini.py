"""The semantic tokenizer of `mini`: 25 Hz, 1,024 clusters.

melody train tokenizer_mini --data.folder corpus/train --workdir runs/tokenizer_mini
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.tokenizer import TokenizerConfig
from melody_jax.training.stages.tokenizer import TokenizerStage


def config() -> TrainConfig:
    """4 layers of width 160; 2.0 M parameters, crops of 5.12 s."""
    return TrainConfig(
        stage=TokenizerStage(model=TokenizerConfig()),
        data=DataConfig(batch_size=16, crop_samples=122_880),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=100),
        steps=400,
        workdir="runs/tokenizer_mini",
    )
