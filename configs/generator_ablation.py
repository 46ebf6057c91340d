"""Noise2Music's generator in the comparison of systems: words to 256 log mels of 80 bands at 25 Hz, 10.24 s.

    melody train generator_ablation --data.folder corpus/train --stage.networks release/noise2music \\
        --workdir runs/generator_ablation
"""

from pathlib import Path

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig, load_config
from melody_jax.models.conditioning import TextCondition
from melody_jax.models.unet1d import UNet1DConfig
from melody_jax.training.stages.text_diffusion import TextDiffusionStage


def config() -> TrainConfig:
    """2.1 M parameters, for the vocoder of `vocoder_ablation.py` and the words of `mulan_mini.py`."""
    configs = Path(__file__).parent
    text = load_config(configs / "mulan_mini.py").stage.model.text
    vocoder = load_config(configs / "vocoder_ablation.py").stage.model
    model = UNet1DConfig(
        latent_dim=vocoder.latent_width,
        frames=256,
        chunks=1,
        frames_per_token=1,
        semantic_tokens=0,
        prefix_conditioning=False,
        width=96,
        angle_width=64,
        channels=(96, 128, 128),
        residual_blocks=1,
        attention_levels=2,
        head_width=32,
        text=TextCondition(width=text.width, length=40),
    )
    return TrainConfig(
        stage=TextDiffusionStage(model=model, text=text, autoencoder=vocoder),
        data=DataConfig(batch_size=8, crop_samples=245_760, text_length=40),
        optimizer=OptimizerConfig(learning_rate=3e-3, muon=True, warmup_steps=60),
        steps=2_400,
        eval_every=100,
        ema_decay=0.998,
        matmul_precision="bfloat16",
        workdir="runs/generator_ablation",
    )
