"""The semantic model of AudioLM: 750 semantic tokens without a prefix, 30 s (arXiv 2209.03143, section IV).

melody train lm_audiolm_paper --data.folder features/codes --workdir runs/lm_audiolm_paper

Sampling writes windows as long as those of the coarse model, 10 s.
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config, with_fields
from melody_jax.models import lm_config
from melody_jax.training.stages.lm import LMStage


def config() -> TrainConfig:
    """12 layers x 1024, 203.5 M parameters (published: 0.3 B). This size is untrained so far."""
    paper = load_config(Path(__file__).with_name("lm_paper.py"))
    model = replace(lm_config.PAPER, layers=12, prefix_levels=0)
    stage = LMStage(model=with_fields(model, dtype="bfloat16"))
    data = replace(paper.data, window_tokens=750)
    return replace(paper, stage=stage, data=data, workdir="runs/lm_audiolm_paper")
