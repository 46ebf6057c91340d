"""The paper's dual-path diffusion with chunks of whole tokens: 256 tokens, 2,560 latents (docs/mathematics.md, Q4, Q6).

python train.py configs/dpd_paper_aligned.py --data.folder features/train --workdir runs/dpd_paper_aligned
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models import dpd
from melody_jax.training.stages.dpd import DPDStage


def config() -> TrainConfig:
    """295.6 M parameters; some windows have one angle, as in generation, and some a clean beginning."""
    return TrainConfig(
        stage=DPDStage(model=dpd.PAPER_ALIGNED, shared_angle=0.3, clean_prefix=0.2),
        data=DataConfig(batch_size=96, window_tokens=256),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=2_000),
        steps=100_000,
        eval_every=1_000,
        ema_decay=0.9999,
        workdir="runs/dpd_paper_aligned",
    )
