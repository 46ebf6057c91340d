"""The fine acoustic model of the comparison of systems: 4 x 64 coarse codes to 8 x 64 others, 2.56 s.

melody train fine_ablation --data.folder features/codes --workdir runs/fine_ablation
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config
from melody_jax.models.lm_config import Condition


def config() -> TrainConfig:
    """1.5 M parameters: the network of `coarse_ablation.py`, without a prefix and a melody, with a layer more."""
    coarse = load_config(Path(__file__).with_name("coarse_ablation.py"))
    model = replace(
        coarse.stage.model,
        prefix_levels=0,
        prefix_everywhere=False,
        melody_span=0,
        layers=5,
        code_levels=8,
        condition=Condition(length=256, ids=256, levels=4),
    )
    data = replace(coarse.data, window_tokens=64, batch_size=8)
    stage = replace(coarse.stage, part="fine", model=model)
    return replace(coarse, stage=stage, data=data, steps=880, workdir="runs/fine_ablation")
