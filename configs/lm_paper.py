"""The paper's language model: 24 layers x 1024, 12 prefix tokens and 250 semantic tokens, 10 s.

MeLoDy (arXiv 2305.15719) section 3.1.

    melody train lm_paper --data.folder features/train --workdir runs/lm_paper
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig, with_fields
from melody_jax.models import lm_config
from melody_jax.training.stages.lm import LMStage


def config() -> TrainConfig:
    """417.4 M parameters. The paper does not state its training: rates and batch are those of its ablations."""
    return TrainConfig(
        stage=LMStage(model=with_fields(lm_config.PAPER, dtype="bfloat16", remat="dots")),
        data=DataConfig(batch_size=96, window_tokens=250),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=2_000),
        steps=100_000,
        eval_every=1_000,
        ema_decay=0.9999,
        workdir="runs/lm_paper",
    )
