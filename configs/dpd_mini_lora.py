"""The dual-path diffusion of `mini`, adapted to a style of music with LoRA (docs/fine-tuning.md).

melody train dpd_mini_lora --data.folder features/mine --workdir runs/dpd_mine
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import LoRAConfig, OptimizerConfig, TrainConfig, load_config


def config() -> TrainConfig:
    """As `dpd_mini.py`, from its released weights: few steps, a tenth of the recordings held out."""
    mini = load_config(Path(__file__).with_name("dpd_mini.py"))
    optimizer = OptimizerConfig(learning_rate=5e-4, warmup_steps=10)
    data = replace(mini.data, holdout=0.1)
    shorter = replace(
        mini, data=data, optimizer=optimizer, steps=40, eval_every=20, eval_batches=4, ema_decay=0.95
    )
    return replace(shorter, init_from="mini", lora=LoRAConfig(rank=8), workdir="runs/dpd_mini_lora")
