"""The diffusion of MeLoDy in the comparison of systems, as large as `coarse_ablation` and `fine_ablation` together.

melody train dpd_systems --data.folder features/train --workdir runs/dpd_systems
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config


def config() -> TrainConfig:
    """3.0 M parameters: `dpd_mini.py`, narrower and without control tokens."""
    mini = load_config(Path(__file__).with_name("dpd_mini.py"))
    model = replace(mini.stage.model, width=128, heads=4, angle_width=64, controls=None)
    return replace(mini, stage=replace(mini.stage, model=model), workdir="runs/dpd_systems")
