"""Noise2Music's generator: words to 750 log mels of 80 bands at 25 Hz, 30 s (arXiv 2302.03917).

    melody train generator_paper --data.folder corpus/train --stage.networks release/noise2music \\
        --data.text-tokenizer release/noise2music/mulan.tokenizer.json \\
        --workdir runs/generator_paper
"""

from pathlib import Path

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig, load_config
from melody_jax.models import mulan
from melody_jax.models.conditioning import TextCondition
from melody_jax.models.unet1d import UNet1DConfig
from melody_jax.training.stages.text_diffusion import TextDiffusionStage


def config() -> TrainConfig:
    """716.1 M parameters; the paper's generator of waveforms has 724 M, we found no number for that of spectrograms.

    Words come from the text tower of `mulan_paper.py`, in the paper from T5. This size is untrained so far.
    """
    model = UNet1DConfig(
        latent_dim=80,
        frames=750,
        frames_per_token=1,
        chunks=1,
        channels=(768, 1280, 1536, 2048),
        residual_blocks=3,
        attention_levels=3,
        width=1024,
        text=TextCondition(width=mulan.PAPER.text.width, length=128),
        dtype="bfloat16",
        remat="blocks",
    )
    vocoder = load_config(Path(__file__).with_name("vocoder_paper.py")).stage.model
    return TrainConfig(
        stage=TextDiffusionStage(model=model, text=mulan.PAPER.text, autoencoder=vocoder),
        data=DataConfig(batch_size=128, crop_samples=720_000, text_length=128),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=10_000),
        steps=500_000,
        eval_every=5_000,
        ema_decay=0.9999,
        workdir="runs/generator_paper",
    )
