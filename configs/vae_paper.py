"""The paper's autoencoder: 250 latents of 16 channels per second, HiFi-GAN halves, its losses.

MeLoDy (arXiv 2305.15719) section 4.2.

    melody train vae_paper --data.folder corpus/train --workdir runs/vae_paper
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig, with_fields
from melody_jax.models import discriminators, vae
from melody_jax.training.stages.vae import VAEStage


def config() -> TrainConfig:
    """5.7 M encoder, 61.0 M decoder. Optimiser, crop and batch, which the paper does not state, are HiFi-GAN's."""
    resolutions = ((8192, 2048), (4096, 1024), (2048, 512), (512, 128), (128, 32), (64, 16), (32, 8))
    return TrainConfig(
        stage=VAEStage(
            model=with_fields(vae.PAPER, dtype="bfloat16"),
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
