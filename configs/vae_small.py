"""The paper's autoencoder at half its widths, for one GPU and a day: 250 latents of 16 channels per second.

melody train vae_small --data.folder corpus/train --workdir runs/vae_small
"""

import dataclasses
from pathlib import Path

from melody_jax.config import TrainConfig, load_config
from melody_jax.models import discriminators


def config() -> TrainConfig:
    """Losses and rates of `vae_paper.py`. This size is untrained so far."""
    paper = load_config(Path(__file__).with_name("vae_paper.py"))
    codec = dataclasses.replace(
        paper.stage.model.codec, encoder_channels=(16, 32, 64, 128), decoder_channels=(384, 192, 96, 48)
    )
    layers = tuple((width // 2, *rest) for width, *rest in discriminators.PAPER.resolution_layers)
    discriminator = dataclasses.replace(
        discriminators.PAPER,
        period_widths=(16, 64, 256, 512, 512),
        resolution_layers=layers,
    )
    model = dataclasses.replace(paper.stage.model, codec=codec)
    stage = dataclasses.replace(paper.stage, model=model, discriminator=discriminator)
    return dataclasses.replace(paper, stage=stage, steps=200_000, workdir="runs/vae_small")
