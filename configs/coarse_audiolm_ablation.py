"""The coarse acoustic model of AudioLM in the comparison of systems; `fine_ablation` serves both systems.

melody train coarse_audiolm_ablation --data.folder features/codes --workdir runs/coarse_audiolm_ablation
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config


def config() -> TrainConfig:
    """`coarse_ablation` without a prefix and a melody, with two layers more."""
    coarse = load_config(Path(__file__).with_name("coarse_ablation.py"))
    model = replace(coarse.stage.model, prefix_levels=0, prefix_everywhere=False, melody_span=0, layers=6)
    stage = replace(coarse.stage, model=model)
    return replace(coarse, stage=stage, steps=660, workdir="runs/coarse_audiolm_ablation")
