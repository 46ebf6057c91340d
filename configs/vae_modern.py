"""An autoencoder with 50 Hz latents of 64 channels whose decoder predicts complex spectra (models/stft_codec.py).

melody train vae_modern --data.folder corpus/train --workdir runs/vae_modern
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig, with_fields
from melody_jax.models import discriminators, vae
from melody_jax.training.stages.vae import VAEStage


def config() -> TrainConfig:
    """8.2 M encoder, 49.7 M decoder; the discriminators are the paper's. This size is untrained so far."""
    stage = VAEStage(
        model=with_fields(vae.MODERN, dtype="bfloat16"),
        discriminator=discriminators.PAPER,
        kl_weight=0.01,
        adversarial_share=1.0,
    )
    return TrainConfig(
        stage=stage,
        data=DataConfig(batch_size=64, crop_samples=34_560),
        optimizer=OptimizerConfig(learning_rate=5e-4, beta1=0.8, warmup_steps=1_000),
        steps=500_000,
        eval_every=5_000,
        ema_decay=0.9999,
        workdir="runs/vae_modern",
    )
