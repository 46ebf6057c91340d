"""Noise2Music's vocoder: log mels of 80 bands at 100 Hz to a 24 kHz waveform (arXiv 2302.03917).

melody train vocoder_paper --data.folder corpus/train --workdir runs/vocoder_paper
"""

from dataclasses import replace

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models import discriminators
from melody_jax.models.stft_config import StftCodecConfig
from melody_jax.models.vae import VAEConfig
from melody_jax.training.stages.vae import VAEStage


def config() -> TrainConfig:
    """25.1 M parameters that write complex spectra in one pass, where the paper's is a diffusion. Untrained so far."""
    codec = StftCodecConfig(
        downsample=1,
        decoder_latent_width=768,
        decoder_latent_blocks=4,
        decoder_frame_width=768,
        decoder_frame_blocks=4,
        phase=True,
        dtype="bfloat16",
    )
    stage = VAEStage(
        model=VAEConfig(latent_width=80, mel=True, codec=codec),
        discriminator=replace(
            discriminators.PAPER, resolutions=((2048, 480, 2048), (1024, 240, 1024), (512, 120, 512))
        ),
        adversarial_share=1.0,
    )
    return TrainConfig(
        stage=stage,
        data=DataConfig(batch_size=64, crop_samples=34_560),
        optimizer=OptimizerConfig(learning_rate=5e-4, beta1=0.8, warmup_steps=1_000),
        steps=500_000,
        eval_every=5_000,
        ema_decay=0.9999,
        workdir="runs/vocoder_paper",
    )
