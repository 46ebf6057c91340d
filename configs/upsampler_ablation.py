"""Noise2Music's upsampler in the comparison of systems: log mels at 25 Hz, and words, to 1,024 log mels at 100 Hz.

    melody train upsampler_ablation --data.folder corpus/train --stage.networks release/noise2music \\
        --workdir runs/upsampler_ablation
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config


def config() -> TrainConfig:
    """2.2 M parameters: `generator_ablation.py` with four times the frames."""
    generator = load_config(Path(__file__).with_name("generator_ablation.py"))
    model = replace(generator.stage.model, frames=1024, frames_per_token=4, lower_ratio=4, lower_noise=0.6)
    stage = replace(generator.stage, part="upsampler", model=model)
    return replace(generator, stage=stage, steps=1_590, workdir="runs/upsampler_ablation")
