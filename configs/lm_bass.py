"""The language model of `mini`, trained on with control tokens: tempo, key, mode, metre and genre.

melody train lm_bass --data.folder features/train features/train2 --data.networks release/bass --workdir runs/lm_bass
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.composer.facts import VOCABULARY
from melody_jax.config import OptimizerConfig, TrainConfig, load_config


def config() -> TrainConfig:
    """As `lm_mini.py`, from its released weights; the new tokens have almost no effect at first."""
    mini = load_config(Path(__file__).with_name("lm_mini.py"))
    stage = replace(mini.stage, model=replace(mini.stage.model, controls=VOCABULARY))
    optimizer = OptimizerConfig(learning_rate=2e-3, muon=True, warmup_steps=30, weight_decay=0.1)
    longer = replace(mini, stage=stage, optimizer=optimizer, init_from="mini", matmul_precision="bfloat16")
    return replace(longer, steps=1_500, workdir="runs/lm_bass")
