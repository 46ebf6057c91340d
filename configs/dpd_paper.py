"""The paper's dual-path diffusion: 250 semantic tokens to 2,500 latents of 16 channels, 10 s.

MeLoDy (arXiv 2305.15719) section 4.1.

    melody train dpd_paper --data.folder features/train --workdir runs/dpd_paper
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig, with_fields
from melody_jax.models import dpd
from melody_jax.training.stages.dpd import DPDStage


def config() -> TrainConfig:
    """295.6 M parameters, trained as in the paper's ablations: AdamW at 5e-4, batches of 96, 100,000 steps."""
    return TrainConfig(
        stage=DPDStage(model=with_fields(dpd.PAPER, dtype="bfloat16", remat="blocks")),
        data=DataConfig(batch_size=96, window_tokens=250),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=2_000),
        steps=100_000,
        eval_every=1_000,
        ema_decay=0.9999,
        workdir="runs/dpd_paper",
    )
