"""The fine acoustic model of AudioLM: `fine_paper` with 12 layers (arXiv 2209.03143, section IV).

melody train fine_audiolm_paper --data.folder features/codes --workdir runs/fine_audiolm_paper
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config


def config() -> TrainConfig:
    """222.3 M parameters (published: 0.3 B). This size is untrained so far."""
    musiclm = load_config(Path(__file__).with_name("fine_paper.py"))
    stage = replace(musiclm.stage, model=replace(musiclm.stage.model, layers=12))
    return replace(musiclm, stage=stage, workdir="runs/fine_audiolm_paper")
