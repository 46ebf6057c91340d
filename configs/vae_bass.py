"""`vae_mini` that codes bass: a second STFT window for the band below 1 kHz, and losses that give the bass a say and
noise its level.

melody train vae_bass --data.folder corpus/train --workdir runs/vae_bass
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.stft_config import StftCodecConfig
from melody_jax.models.vae import VAEConfig
from melody_jax.training.stages.vae import VAEStage


def config() -> TrainConfig:
    """2.9 M encoder, 4.7 M decoder; crops of 1.44 s; trained without discriminators, as `vae_mini` is."""
    stage = VAEStage(
        model=VAEConfig(codec=StftCodecConfig(low_hz=1_000.0)),
        resolutions=((8192, 1920), (4096, 960), (2048, 480), (1024, 240), (512, 120)),
        loss_corner_hz=150.0,
        magnitude_weight=1.0,
        quantile=0.632,
        kl_weight=0.003,
        adversarial_start=20_000,
    )
    return TrainConfig(
        stage=stage,
        data=DataConfig(batch_size=16, crop_samples=34_560),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=60),
        steps=20_000,
        ema_decay=0.998,
        workdir="runs/vae_bass",
    )
