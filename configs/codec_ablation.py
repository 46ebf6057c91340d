"""The residual-VQ codec of the comparison of systems: 25 latents of 12 codes per second, 2.4 kbit/s.

melody train codec_ablation --data.folder corpus/train --workdir runs/codec_ablation
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config
from melody_jax.models.rvq import QuantiserConfig


def config() -> TrainConfig:
    """The networks of `vae_ablation.py`, half the paper's frame rate, 256 codes per level instead of 1,024."""
    vae = load_config(Path(__file__).with_name("vae_ablation.py"))
    model = replace(vae.stage.model, quantiser=QuantiserConfig(levels=12, codes=256))
    return replace(vae, stage=replace(vae.stage, model=model), workdir="runs/codec_ablation")
