"""A small autoencoder for the comparison of systems: 25 Hz x 64 latents of magnitudes, phase by Griffin-Lim.

melody train vae_ablation --data.folder corpus/train --workdir runs/vae_ablation
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config
from melody_jax.models.stft_config import StftCodecConfig
from melody_jax.models.vae import VAEConfig


def config() -> TrainConfig:
    """1.7 M parameters, with the recipe of `vae_mini.py`."""
    mini = load_config(Path(__file__).with_name("vae_mini.py"))
    codec = StftCodecConfig(
        low_hz=1_000.0,
        encoder_frame_width=128,
        encoder_frame_blocks=1,
        encoder_latent_width=160,
        encoder_latent_blocks=2,
        decoder_latent_width=192,
        decoder_latent_blocks=3,
        decoder_frame_width=160,
        decoder_frame_blocks=2,
    )
    stage = replace(mini.stage, model=VAEConfig(codec=codec))
    return replace(mini, stage=stage, steps=1_000, workdir="runs/vae_ablation")
