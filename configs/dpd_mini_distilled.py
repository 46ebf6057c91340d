"""The diffusion of `mini` for 1, 2 or 4 steps of one pass each, distilled from the released DPD (docs/distillation.md).

melody train dpd_mini_distilled --data.folder features/train --workdir runs/dpd_distilled
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import OptimizerConfig, TrainConfig, load_config
from melody_jax.training.stages.consistency import ConsistencyStage


def config() -> TrainConfig:
    """As `dpd_mini.py`, from its released weights, which it samples with the default rescaling; the embeddings of
    tokens are frozen."""
    mini = load_config(Path(__file__).with_name("dpd_mini.py"))
    stage = ConsistencyStage(model=replace(mini.stage.model, guidance_range=(1.0, 4.0)), guidance_rescale=0.7)
    tables = tuple((f"model/{tokens}_table", 0.0) for tokens in ("token", "prefix", "control"))
    optimizer = OptimizerConfig(learning_rate=1.5e-3, muon=True, warmup_steps=20, rate_scales=tables)
    data, workdir = replace(mini.data, batch_size=4), "runs/dpd_mini_distilled"
    distilled = replace(mini, stage=stage, data=data, optimizer=optimizer, init_from="mini", workdir=workdir)
    return replace(distilled, steps=260, eval_every=50, eval_batches=2, save_minutes=5.0, ema_decay=0.98)
