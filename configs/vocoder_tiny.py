"""A vocoder for tests, and a first run on a CPU: 100 latents per second, each 16 bands of a log mel spectrum.

melody train vocoder_tiny --data.folder corpus/train --workdir runs/vocoder_tiny
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models import discriminators, vae
from melody_jax.training.stages.vae import VAEStage


def config() -> TrainConfig:
    """0.01 M parameters."""
    stage = VAEStage(model=vae.TINY_MEL, discriminator=discriminators.TINY, adversarial_start=200)
    return TrainConfig(
        stage=stage,
        data=DataConfig(batch_size=8, crop_samples=9_600),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=20),
        steps=300,
        workdir="runs/vocoder_tiny",
    )
