"""A residual-VQ codec for tests, and a first run on a CPU: 25 latents of 3 codes per second.

melody train codec_tiny --data.folder corpus/train --workdir runs/codec_tiny
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models import discriminators, vae
from melody_jax.training.stages.vae import VAEStage


def config() -> TrainConfig:
    """0.03 M parameters."""
    stage = VAEStage(model=vae.TINY_CODES, discriminator=discriminators.TINY, adversarial_start=200)
    return TrainConfig(
        stage=stage,
        data=DataConfig(batch_size=8, crop_samples=9_600),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=20),
        steps=300,
        workdir="runs/codec_tiny",
    )
