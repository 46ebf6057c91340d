"""The paper's semantic tokenizer: a Wav2Vec2-Conformer with rotary positions, 25 Hz, 1,024 clusters.

MeLoDy (arXiv 2305.15719) section 5.1.

    melody train tokenizer_paper --data.folder corpus/train --workdir runs/tokenizer_paper
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig, with_fields
from melody_jax.models import tokenizer
from melody_jax.training.stages.tokenizer import TokenizerStage


def config() -> TrainConfig:
    """195.1 M parameters. The paper uses a trained network; rates and batch for training it are our choice."""
    return TrainConfig(
        stage=TokenizerStage(model=with_fields(tokenizer.PAPER, dtype="bfloat16"), cluster_frames=1_000_000),
        data=DataConfig(batch_size=64, crop_samples=240_000),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=10_000),
        steps=200_000,
        eval_every=2_000,
        ema_decay=0.9999,
        workdir="runs/tokenizer_paper",
    )
