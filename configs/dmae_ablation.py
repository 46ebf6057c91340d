"""Moûsai's diffusion autoencoder in the comparison of systems: 25 latents of 32 channels per second.

melody train dmae_ablation --data.folder corpus/train --workdir runs/dmae_ablation
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.diffusion_codec import DiffusionCodecConfig
from melody_jax.models.stft_config import StftCodecConfig
from melody_jax.models.unet1d import UNet1DConfig
from melody_jax.training.stages.diffusion_codec import DiffusionCodecStage


def config() -> TrainConfig:
    """1.6 M parameters; crops of 1.28 s."""
    codec = StftCodecConfig(
        encoder_frame_width=96, encoder_frame_blocks=1, encoder_latent_width=128, encoder_latent_blocks=2
    )
    decoder = UNet1DConfig(
        latent_dim=2 * codec.bins,
        frames=128,
        chunks=1,
        frames_per_token=4,
        semantic_tokens=0,
        cross_attention=False,
        prefix_conditioning=False,
        lower_ratio=codec.downsample,
        lower_dim=32,
        width=112,
        angle_width=64,
        channels=(112, 112),
        residual_blocks=1,
        attention_levels=0,
    )
    return TrainConfig(
        stage=DiffusionCodecStage(model=DiffusionCodecConfig(codec=codec, decoder=decoder)),
        data=DataConfig(batch_size=16, crop_samples=30_720),
        optimizer=OptimizerConfig(learning_rate=3e-3, muon=True, warmup_steps=60),
        steps=1_500,
        eval_every=250,
        ema_decay=0.998,
        matmul_precision="bfloat16",
        workdir="runs/dmae_ablation",
    )
