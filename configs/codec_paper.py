"""The residual-VQ codec of AudioLM and MusicLM (SoundStream, arXiv 2107.03312): 50 latents of 12 codes per second.

melody train codec_paper --data.folder corpus/train --workdir runs/codec_paper
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig, with_fields
from melody_jax.models import discriminators, vae
from melody_jax.training.stages.vae import VAEStage


def config() -> TrainConfig:
    """6 kbit/s at 24 kHz (MusicLM, arXiv 2301.11325, section 4.1); HiFi-GAN's halves. This size is untrained so far."""
    return TrainConfig(
        stage=VAEStage(
            model=with_fields(vae.PAPER_CODES, dtype="bfloat16"),
            discriminator=discriminators.PAPER,
            adversarial_start=0,
            adversarial_crop=24_000,
            adversarial_items=16,
        ),
        data=DataConfig(batch_size=32, crop_samples=24_000),
        optimizer=OptimizerConfig(learning_rate=2e-4, beta1=0.8, beta2=0.99, warmup_steps=1_000),
        steps=500_000,
        eval_every=5_000,
        workdir="runs/codec_paper",
    )
