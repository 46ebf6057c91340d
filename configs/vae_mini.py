"""The autoencoder that ships: 25 Hz x 64 latents, an inverse-STFT decoder.

python train.py configs/vae_mini.py --data.folder corpus/train --workdir runs/vae_mini
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.vae import VAEConfig
from melody_jax.training.stages.vae import VAEStage


def config() -> TrainConfig:
    """3.1 M encoder, 4.6 M decoder; crops of 1.44 s; no discriminators yet, see docs/mini.md."""
    return TrainConfig(
        stage=VAEStage(model=VAEConfig(), adversarial_start=2_000),
        data=DataConfig(batch_size=16, crop_samples=34_560),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=100),
        steps=2_000,
        ema_decay=0.998,
        workdir="runs/vae_mini",
    )
