"""The language model of the paper's size with two tokens per pass: 12 prefix tokens, 256 semantic tokens, 10.24 s.

melody train lm_modern --data.folder features/train --workdir runs/lm_modern
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config, with_fields
from melody_jax.models import lm_config


def config() -> TrainConfig:
    """424.7 M parameters. This size is untrained so far."""
    paper = load_config(Path(__file__).with_name("lm_paper.py"))
    stage, data = (
        replace(paper.stage, model=with_fields(lm_config.MODERN, dtype="bfloat16", remat="dots")),
        replace(paper.data, window_tokens=256),
    )
    return replace(paper, stage=stage, data=data, workdir="runs/lm_modern")
