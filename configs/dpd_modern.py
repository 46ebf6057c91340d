"""Dual-path diffusion of the paper's size on 50 Hz latents: 256 semantic tokens to 512 latents of 64 channels, 10.24 s.

melody train dpd_modern --data.folder features/train --workdir runs/dpd_modern
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config, with_fields
from melody_jax.models import dpd
from melody_jax.training.stages.dpd import DPDStage


def config() -> TrainConfig:
    """298.8 M parameters, 0.33 TFLOP per pass (the paper's: 1.54). This size is untrained so far."""
    paper = load_config(Path(__file__).with_name("dpd_paper.py"))
    stage, data = (
        DPDStage(
            model=with_fields(dpd.MODERN, dtype="bfloat16", remat="blocks"),
            shared_angle=0.5,
            clean_prefix=0.2,
        ),
        replace(paper.data, window_tokens=256),
    )
    return replace(paper, stage=stage, data=data, workdir="runs/dpd_modern")
