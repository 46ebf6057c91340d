"""The language model that ships: 12 prefix tokens to 256 semantic tokens, 10.24 s.

python train.py configs/lm_mini.py --data.folder features/mini --workdir runs/lm_mini
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.lm import LMConfig
from melody_jax.training.stages.lm import LMStage


def config() -> TrainConfig:
    """6 x 256; 5.1 M parameters in the blocks, 0.14 TFLOP a step."""
    return TrainConfig(
        stage=LMStage(model=LMConfig(), history_corruption=0.1),
        data=DataConfig(batch_size=16, window_tokens=256, text_prefix_probability=0.5),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=60, weight_decay=0.1),
        steps=1_000,
        eval_every=100,
        workdir="runs/lm_mini",
    )
