"""Moûsai's latent diffusion in the comparison of systems: words to 256 latents of `dmae_ablation.py`, 10.24 s.

    melody train latent_generator_ablation --data.folder corpus/train --stage.networks release/mousai \\
        --workdir runs/latent_generator_ablation
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config


def config() -> TrainConfig:
    """4.4 M parameters: `generator_ablation.py`, wider, on other latents."""
    configs = Path(__file__).parent
    generator = load_config(configs / "generator_ablation.py")
    codec = load_config(configs / "dmae_ablation.py").stage.model
    model = replace(generator.stage.model, latent_dim=codec.latent_width, channels=(128, 192, 192))
    stage = replace(generator.stage, part="latent_generator", model=model, ratio=1, autoencoder=codec)
    return replace(generator, stage=stage, steps=4_740, workdir="runs/latent_generator_ablation")
