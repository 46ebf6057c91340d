"""Noise2Music's upsampler at the size of the tests: log mels at 25 Hz, and words, to 320 log mels at 100 Hz, 3.2 s.

    melody train upsampler_tiny --data.folder corpus/train --stage.networks release/noise2music \\
        --workdir runs/upsampler_tiny
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config


def config() -> TrainConfig:
    """As `generator_tiny.py`, with four times the frames."""
    generator = load_config(Path(__file__).with_name("generator_tiny.py"))
    model = replace(generator.stage.model, frames=320, frames_per_token=4, lower_ratio=4, lower_noise=0.6)
    stage = replace(generator.stage, part="upsampler", model=model)
    return replace(generator, stage=stage, workdir="runs/upsampler_tiny")
