"""A language model for one GPU and a day: 12 prefix tokens to 256 semantic tokens, 10.24 s.

melody train lm_small --data.folder features/train --workdir runs/lm_small
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.lm_config import LMConfig
from melody_jax.training.stages.lm import LMStage


def config() -> TrainConfig:
    """8 layers of width 512, with recall, and the recipe of `mini`. This size is untrained so far."""
    model = LMConfig(layers=8, width=512, heads=8, ffn=1408, prefix_codes=1024, dropout=0.1, dtype="bfloat16")
    return TrainConfig(
        stage=LMStage(model=model),
        data=DataConfig(batch_size=64, window_tokens=256, text_prefix_probability=0.5),
        optimizer=OptimizerConfig(learning_rate=2e-3, muon=True, warmup_steps=500, weight_decay=0.1),
        steps=50_000,
        eval_every=1_000,
        workdir="runs/lm_small",
    )
