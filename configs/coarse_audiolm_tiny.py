"""The coarse acoustic model of AudioLM at the size of the tests; `fine_tiny` serves both systems.

melody train coarse_audiolm_tiny --data.folder features/codes --workdir runs/coarse_audiolm_tiny
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config


def config() -> TrainConfig:
    """`coarse_tiny` without a prefix."""
    tiny = load_config(Path(__file__).with_name("coarse_tiny.py"))
    stage = replace(tiny.stage, model=replace(tiny.stage.model, prefix_levels=0))
    return replace(tiny, stage=stage, workdir="runs/coarse_audiolm_tiny")
