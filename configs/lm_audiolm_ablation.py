"""The semantic language model of AudioLM in the comparison of systems.

    melody train lm_audiolm_ablation --data.folder features/train --data.networks release/mini \\
        --stage.tokenizer release/mini --workdir runs/lm_audiolm_ablation
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config


def config() -> TrainConfig:
    """`lm_ablation` without a prefix and a melody, with two layers more."""
    lm = load_config(Path(__file__).with_name("lm_ablation.py"))
    model = replace(lm.stage.model, prefix_levels=0, prefix_everywhere=False, melody_span=0, layers=6)
    stage = replace(lm.stage, model=model)
    return replace(lm, stage=stage, steps=1_200, workdir="runs/lm_audiolm_ablation")
