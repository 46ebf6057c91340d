"""Moûsai's latent diffusion: words to 2,150 latents of `dmae_paper.py`, 43 s (arXiv 2301.11757).

    melody train latent_generator_paper --data.folder corpus/stereo --stage.networks release/mousai \\
        --data.text-tokenizer release/mousai/mulan.tokenizer.json \\
        --workdir runs/latent_generator_paper
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config


def config() -> TrainConfig:
    """689.6 M parameters, a U-Net with attention to the words. This size is untrained so far."""
    generator = load_config(Path(__file__).with_name("generator_paper.py"))
    codec = load_config(Path(__file__).with_name("dmae_paper.py")).stage.model
    model = replace(
        generator.stage.model,
        latent_dim=codec.latent_width,
        frames=2_150,
        frames_per_token=2,
        channels=(512, 1024, 1280, 1536, 1792),
        attention_levels=3,
    )
    stage = replace(generator.stage, part="latent_generator", model=model, ratio=1, autoencoder=codec)
    data = replace(generator.data, crop_samples=2_150 * codec.hop)
    return replace(generator, stage=stage, data=data, workdir="runs/latent_generator_paper")
