"""The semantic language model of the comparison of systems, of MeLoDy and MusicLM alike: 256 semantic tokens, 10.24 s.

    melody train lm_ablation --data.folder features/tunes --data.networks release/mini \\
        --stage.mulan release/mini --stage.tokenizer release/mini --workdir runs/lm_ablation
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config
from melody_jax.models.lm_config import LMConfig


def config() -> TrainConfig:
    """1.4 M parameters: 4 layers of width 120, with recall; it follows a melody, but takes no control tokens."""
    mini = load_config(Path(__file__).with_name("lm_mini.py"))
    stage = replace(mini.stage, model=LMConfig(layers=4, width=120, ffn=320, melody_span=1))
    return replace(mini, stage=stage, steps=1_500, workdir="runs/lm_ablation")
