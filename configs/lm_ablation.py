"""The semantic language model of the comparison of systems, of MeLoDy and MusicLM alike: 256 semantic tokens, 10.24 s.

    melody train lm_ablation --data.folder features/train --data.networks release/mini \\
        --stage.mulan release/mini --stage.tokenizer release/mini --workdir runs/lm_ablation
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config
from melody_jax.models.lm_config import LMConfig


def config() -> TrainConfig:
    """1.4 M parameters: 4 layers of width 120, with recall, without control tokens."""
    mini = load_config(Path(__file__).with_name("lm_mini.py"))
    stage = replace(mini.stage, model=LMConfig(layers=4, width=120, ffn=320))
    return replace(mini, stage=stage, steps=1_500, workdir="runs/lm_ablation")
