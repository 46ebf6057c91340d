"""The autoencoder of `mini`: 25 Hz x 64 latents of magnitudes, phase by Griffin-Lim.

melody train vae_mini --data.folder corpus/train --workdir runs/vae_mini
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.vae import VAEConfig
from melody_jax.training.stages.vae import VAEStage


def config() -> TrainConfig:
    """2.9 M encoder, 4.6 M decoder; crops of 1.44 s; trained without discriminators, see docs/mini.md."""
    return TrainConfig(
        stage=VAEStage(model=VAEConfig(), kl_weight=0.01, adversarial_start=1_500),
        data=DataConfig(batch_size=16, crop_samples=34_560),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=60),
        steps=1_500,
        ema_decay=0.998,
        workdir="runs/vae_mini",
    )
