"""The vocoder of the comparison of systems: log mels of 80 bands at 100 Hz to a waveform, phase by Griffin-Lim.

melody train vocoder_ablation --data.folder corpus/train --workdir runs/vocoder_ablation
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config
from melody_jax.models.stft_config import StftCodecConfig
from melody_jax.models.vae import VAEConfig


def config() -> TrainConfig:
    """1.0 M parameters, with the recipe of `vae_mini.py`. Its window of 2,048 samples resolves the bass."""
    mini = load_config(Path(__file__).with_name("vae_mini.py"))
    codec = StftCodecConfig(
        n_fft=2048,
        downsample=1,
        decoder_latent_width=192,
        decoder_latent_blocks=2,
        decoder_frame_width=192,
        decoder_frame_blocks=2,
        griffin_lim_steps=16,
    )
    stage = replace(mini.stage, model=VAEConfig(latent_width=80, mel=True, codec=codec), kl_weight=0.0)
    return replace(mini, stage=stage, steps=1_000, workdir="runs/vocoder_ablation")
