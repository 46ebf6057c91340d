"""The semantic model of AudioLM at the size of the tests.

melody train lm_audiolm_tiny --data.folder features/codes --workdir runs/lm_audiolm_tiny
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config


def config() -> TrainConfig:
    """`lm_tiny` without a prefix and without recall."""
    tiny = load_config(Path(__file__).with_name("lm_tiny.py"))
    stage = replace(tiny.stage, model=replace(tiny.stage.model, prefix_levels=0, recall=False))
    return replace(tiny, stage=stage, workdir="runs/lm_audiolm_tiny")
