"""The autoencoder of 48 kHz stereo for one GPU and a day: 50 latents of 64 channels per second.

melody train vae_small --data.folder corpus/stereo --workdir runs/vae_small
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config, with_fields
from melody_jax.models import discriminators, vae


def config() -> TrainConfig:
    """`vae_modern.py` with half of its widths, and discriminators likewise. This size is untrained so far."""
    modern = load_config(Path(__file__).with_name("vae_modern.py"))
    layers = tuple((width // 2, *rest) for width, *rest in discriminators.PAPER.resolution_layers)
    discriminator = replace(
        modern.stage.discriminator, period_widths=(16, 64, 256, 512, 512), resolution_layers=layers
    )
    stage = replace(modern.stage, model=with_fields(vae.SMALL, dtype="bfloat16"), discriminator=discriminator)
    data = replace(modern.data, batch_size=32)
    return replace(modern, stage=stage, data=data, steps=200_000, workdir="runs/vae_small")
