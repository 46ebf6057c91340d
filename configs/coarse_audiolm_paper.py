"""The coarse acoustic model of AudioLM: `coarse_paper` without a prefix, 12 layers (arXiv 2209.03143, section IV).

melody train coarse_audiolm_paper --data.folder features/codes --workdir runs/coarse_audiolm_paper
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config


def config() -> TrainConfig:
    """210.8 M parameters (published: 0.3 B). This size is untrained so far."""
    musiclm = load_config(Path(__file__).with_name("coarse_paper.py"))
    stage = replace(musiclm.stage, model=replace(musiclm.stage.model, layers=12, prefix_levels=0))
    return replace(musiclm, stage=stage, workdir="runs/coarse_audiolm_paper")
