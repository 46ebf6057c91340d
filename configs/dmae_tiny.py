"""Moûsai's diffusion autoencoder at the size of the tests: 25 latents of 8 channels per second.

melody train dmae_tiny --data.folder corpus/train --workdir runs/dmae_tiny
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models import diffusion_codec
from melody_jax.training.stages.diffusion_codec import DiffusionCodecStage


def config() -> TrainConfig:
    """0.09 M parameters, crops of 0.64 s."""
    return TrainConfig(
        stage=DiffusionCodecStage(model=diffusion_codec.TINY),
        data=DataConfig(batch_size=8, crop_samples=15_360),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
        steps=300,
        workdir="runs/dmae_tiny",
    )
