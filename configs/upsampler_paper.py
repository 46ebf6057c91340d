"""Noise2Music's cascade: log mels at 25 Hz, and words, to 3,000 log mels of 80 bands at 100 Hz, 30 s.

    melody train upsampler_paper --data.folder corpus/train --stage.networks release/noise2music \\
        --data.text-tokenizer release/noise2music/mulan.tokenizer.json \\
        --workdir runs/upsampler_paper
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config


def config() -> TrainConfig:
    """494.4 M parameters; the cascader of the paper (arXiv 2302.03917) has 487 M. This size is untrained so far."""
    generator = load_config(Path(__file__).with_name("generator_paper.py"))
    model = replace(
        generator.stage.model,
        frames=3_000,
        frames_per_token=4,
        lower_ratio=4,
        lower_noise=0.6,
        channels=(512, 768, 1024, 1536, 1920),
        residual_blocks=2,
        attention_levels=2,
    )
    stage = replace(generator.stage, part="upsampler", model=model)
    return replace(generator, stage=stage, workdir="runs/upsampler_paper")
