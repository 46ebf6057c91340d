"""Noise2Music's generator at the size of the tests: words to log mels of 16 bands at 25 Hz, 3.2 s.

    melody train generator_tiny --data.folder corpus/train --stage.networks release/noise2music \\
        --workdir runs/generator_tiny
"""

from dataclasses import replace

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models import mulan, unet1d, vae
from melody_jax.models.conditioning import TextCondition
from melody_jax.training.stages.text_diffusion import TextDiffusionStage


def config() -> TrainConfig:
    """0.04 M parameters, for the latents of `vocoder_tiny.py` and the words of `mulan_tiny.py`."""
    text = TextCondition(width=mulan.TINY.text.width, length=40)
    model = replace(
        unet1d.TINY,
        latent_dim=vae.TINY_MEL.latent_width,
        frames=80,
        chunks=1,
        frames_per_token=1,
        prefix_conditioning=False,
        text=text,
    )
    return TrainConfig(
        stage=TextDiffusionStage(model=model, text=mulan.TINY.text, autoencoder=vae.TINY_MEL),
        data=DataConfig(batch_size=8, crop_samples=76_800, text_length=40),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
        steps=300,
        workdir="runs/generator_tiny",
    )
