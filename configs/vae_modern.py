"""An autoencoder of 48 kHz stereo with 50 Hz latents of 64 channels; its decoder writes complex spectra.

melody train vae_modern --data.folder corpus/stereo --workdir runs/vae_modern
"""

from dataclasses import replace

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig, with_fields
from melody_jax.models import discriminators, vae
from melody_jax.training.stages.vae import VAEStage


def config() -> TrainConfig:
    """8.8 M encoder, 51.7 M decoder, discriminators as wide as the paper's. This size is untrained so far."""
    stage = VAEStage(
        model=with_fields(vae.MODERN, dtype="bfloat16"),
        discriminator=replace(
            discriminators.PAPER, resolutions=((2048, 480, 2048), (1024, 240, 1024), (4096, 960, 4096))
        ),
        resolutions=((4096, 960), (2048, 480), (1024, 240), (512, 120)),
        kl_weight=0.01,
        adversarial_share=1.0,
        adversarial_crop=34_560,
    )
    return TrainConfig(
        stage=stage,
        data=DataConfig(batch_size=64, crop_samples=69_120),
        optimizer=OptimizerConfig(learning_rate=5e-4, beta1=0.8, warmup_steps=1_000),
        steps=500_000,
        eval_every=5_000,
        ema_decay=0.9999,
        workdir="runs/vae_modern",
    )
