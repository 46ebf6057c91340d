"""The `modern` diffusion for 4 steps or fewer of one pass each, guidance distilled in (docs/distillation.md).

    melody train dpd_modern_distilled --data.folder features/train --init-from release/modern \\
        --workdir runs/dpd_modern_distilled
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config
from melody_jax.training.stages.consistency import ConsistencyStage


def config() -> TrainConfig:
    """From the released `dpd` of `dpd_modern.py`. This size is untrained so far."""
    modern = load_config(Path(__file__).with_name("dpd_modern.py"))
    stage = ConsistencyStage(model=replace(modern.stage.model, guidance_range=(1.0, 4.0)))
    optimizer = replace(modern.optimizer, learning_rate=1e-4)
    named = {"init_from": "release/modern", "workdir": "runs/dpd_modern_distilled"}
    return replace(modern, stage=stage, optimizer=optimizer, steps=20_000, **named)
