"""The coarse acoustic model of MusicLM: 250 semantic tokens to 4 x 500 codes, 10 s (arXiv 2301.11325, section 4.1).

melody train coarse_paper --data.folder features/codes --workdir runs/coarse_paper
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config, with_fields
from melody_jax.models import lm_config
from melody_jax.models.lm_config import Condition
from melody_jax.training.stages.acoustic import AcousticStage


def config() -> TrainConfig:
    """The network of `lm_paper.py`, about 430 M parameters per stage as published. This size is untrained so far."""
    paper = load_config(Path(__file__).with_name("lm_paper.py"))
    model = replace(lm_config.PAPER, code_levels=4, condition=Condition(length=250, ids=1024))
    stage = AcousticStage(part="coarse", model=with_fields(model, dtype="bfloat16"))
    data = replace(paper.data, window_tokens=250)
    return replace(paper, stage=stage, data=data, workdir="runs/coarse_paper")
