"""The autoencoder of the paper: 250 latents of 16 channels a second, HiFi-GAN halves, and its losses (section 2.5).

python train.py configs/vae_paper.py --data.folder corpus/train --workdir runs/vae_paper
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models import discriminators, vae
from melody_jax.training.stages.vae import VAEStage


def config() -> TrainConfig:
    """5.7 M encoder, 61.0 M decoder. What the paper does not say (optimiser, crop, batch) is HiFi-GAN's."""
    resolutions = ((8192, 2048), (4096, 1024), (2048, 512), (512, 128), (128, 32), (64, 16), (32, 8))
    return TrainConfig(
        stage=VAEStage(
            model=vae.PAPER,
            discriminator=discriminators.PAPER,
            resolutions=resolutions,
            window_share=0.5,
            plain_magnitudes=True,
            linear_weight=50.0 * len(resolutions),  # a sum over resolutions, where the stage takes their mean
            log_weight=0.0,
            mel_weight=0.0,
            kl_weight=0.005,
            adversarial_start=0,
            adversarial_ramp=0,
            adversarial_weight=1.0,
            feature_weight=20.0,
            adversarial_crop=8_192,
            adversarial_items=16,
        ),
        data=DataConfig(batch_size=16, crop_samples=8_256),
        optimizer=OptimizerConfig(learning_rate=2e-4, beta1=0.8, beta2=0.99, warmup_steps=1_000),
        steps=1_000_000,
        eval_every=5_000,
        workdir="runs/vae_paper",
    )
