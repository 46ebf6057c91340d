"""Moûsai's diffusion autoencoder: 48 kHz stereo, 50 latents of 64 channels per second (arXiv 2301.11757).

melody train dmae_paper --data.folder corpus/stereo --workdir runs/dmae_paper
"""

from melody_jax.audio_format import FULL_BAND_RATE
from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.diffusion_codec import DiffusionCodecConfig
from melody_jax.models.stft_config import StftCodecConfig
from melody_jax.models.unet1d import UNet1DConfig
from melody_jax.training.stages.diffusion_codec import DiffusionCodecStage


def config() -> TrainConfig:
    """8.3 M encoder; 140.8 M decoder, a U-Net over spectra, where the paper's is over samples. Untrained so far."""
    codec = StftCodecConfig(
        sample_rate=FULL_BAND_RATE,
        channels=2,
        n_fft=1024,
        frame_hop=480,
        downsample=2,
        encoder_frame_width=384,
        encoder_latent_width=512,
        encoder_latent_blocks=4,
        dtype="bfloat16",
    )
    decoder = UNet1DConfig(
        latent_dim=4 * codec.bins,
        frames=512,
        frames_per_token=2,
        chunks=1,
        semantic_tokens=0,
        cross_attention=False,
        lower_ratio=codec.downsample,
        lower_dim=64,
        channels=(1024, 1024, 1280),
        residual_blocks=2,
        attention_levels=0,
        width=512,
        dtype="bfloat16",
        remat="blocks",
    )
    return TrainConfig(
        stage=DiffusionCodecStage(model=DiffusionCodecConfig(latent_width=64, codec=codec, decoder=decoder)),
        data=DataConfig(batch_size=64, crop_samples=245_760),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=10_000),
        steps=500_000,
        eval_every=5_000,
        ema_decay=0.9999,
        workdir="runs/dmae_paper",
    )
