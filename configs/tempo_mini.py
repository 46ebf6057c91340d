"""The tempo head of `mini`: which tempi a prompt may mean that says none, from MuLan's text embedding.

melody train tempo_mini --data.folder corpus/train --stage.networks release/mini --workdir runs/tempo_mini
"""

from pathlib import Path

from melody_jax.composer.facts import VOCABULARY
from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig, load_config
from melody_jax.models.tempo_head import TempoHeadConfig
from melody_jax.training.stages.tempo import TempoStage


def config() -> TrainConfig:
    """0.008 M parameters; a few minutes."""
    mulan = load_config(Path(__file__).with_name("mulan_mini.py")).stage.model
    return TrainConfig(
        stage=TempoStage(model=TempoHeadConfig(embedding=mulan.embedding, controls=VOCABULARY), mulan=mulan),
        data=DataConfig(batch_size=32, crop_samples=24_000, text_length=40),
        optimizer=OptimizerConfig(learning_rate=3e-2, warmup_steps=20),
        steps=600,
        eval_every=100,
        ema_decay=0.99,
        workdir="runs/tempo_mini",
    )
