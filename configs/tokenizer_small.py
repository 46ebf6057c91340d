"""A semantic tokenizer for one GPU and a day: a Conformer on spectra, 1,024 tokens at 25 Hz.

melody train tokenizer_small --data.folder corpus/train --workdir runs/tokenizer_small
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.conformer import ConformerConfig
from melody_jax.models.tokenizer import TokenizerConfig
from melody_jax.training.stages.tokenizer import TokenizerStage


def config() -> TrainConfig:
    """8 layers of width 384. This size is untrained so far."""
    encoder = ConformerConfig(layers=8, width=384, heads=6, ffn=1536, kernel=31, layer=5)
    return TrainConfig(
        stage=TokenizerStage(model=TokenizerConfig(encoder=encoder), cluster_frames=1_000_000),
        data=DataConfig(batch_size=64, crop_samples=245_760),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=1_000),
        steps=50_000,
        eval_every=1_000,
        workdir="runs/tokenizer_small",
    )
