"""The fine acoustic model of MusicLM: 4 x 150 coarse codes to 8 x 150 others, 3 s (arXiv 2301.11325, section 4.1).

melody train fine_paper --data.folder features/codes --workdir runs/fine_paper
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
    model = replace(
        lm_config.PAPER, prefix_levels=0, code_levels=8, condition=Condition(length=600, ids=1024, levels=4)
    )
    stage = AcousticStage(part="fine", model=with_fields(model, dtype="bfloat16"))
    data = replace(paper.data, window_tokens=75)
    return replace(paper, stage=stage, data=data, workdir="runs/fine_paper")
