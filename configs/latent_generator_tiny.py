"""Moûsai's latent diffusion at the size of the tests: words to 80 latents of `dmae_tiny.py`, 3.2 s.

    melody train latent_generator_tiny --data.folder corpus/train --stage.networks release/mousai \\
        --workdir runs/latent_generator_tiny
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config
from melody_jax.models import diffusion_codec


def config() -> TrainConfig:
    """As `generator_tiny.py`, on other latents."""
    generator = load_config(Path(__file__).with_name("generator_tiny.py"))
    codec = diffusion_codec.TINY
    model = replace(generator.stage.model, latent_dim=codec.latent_width)
    stage = replace(generator.stage, part="latent_generator", model=model, ratio=1, autoencoder=codec)
    return replace(generator, stage=stage, workdir="runs/latent_generator_tiny")
