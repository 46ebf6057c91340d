"""The autoencoder of `mini`: 25 Hz x 64 latents of magnitudes, phase by Griffin-Lim.

A second STFT window serves the band below 1 kHz; the losses give the bass a say, and noise its level (docs/mini.md).

melody train vae_mini --data.folder corpus/train --workdir runs/vae_mini
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.stft_config import StftCodecConfig
from melody_jax.models.vae import VAEConfig
from melody_jax.training.stages.vae import VAEStage


def config() -> TrainConfig:
    """18.3 M parameters; crops of 1.44 s; no discriminators. 2.1 s a step on two cores."""
    codec = StftCodecConfig(
        low_hz=1_000.0,
        encoder_frame_width=320,
        encoder_latent_width=448,
        encoder_latent_blocks=3,
        decoder_latent_width=512,
        decoder_latent_blocks=6,
        decoder_frame_width=384,
        decoder_frame_blocks=4,
    )
    stage = VAEStage(
        model=VAEConfig(codec=codec),
        resolutions=((8192, 1920), (4096, 960), (2048, 480), (1024, 240), (512, 120)),
        loss_corner_hz=400.0,
        magnitude_weight=1.0,
        mel_weight=1.0,
        quantile=0.632,
        kl_weight=0.01,
        adversarial_start=20_000,
    )
    return TrainConfig(
        stage=stage,
        data=DataConfig(batch_size=16, crop_samples=34_560),
        optimizer=OptimizerConfig(learning_rate=3e-3, muon=True, warmup_steps=60),
        steps=1_500,
        ema_decay=0.998,
        matmul_precision="bfloat16",
        workdir="runs/vae_mini",
    )
