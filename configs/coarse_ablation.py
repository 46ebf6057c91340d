"""The coarse acoustic model of the comparison of systems: 256 semantic tokens to 4 x 256 codes, 10.24 s.

melody train coarse_ablation --data.folder features/codes --workdir runs/coarse_ablation
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.lm_config import Condition, LMConfig
from melody_jax.training.stages.acoustic import AcousticStage


def config() -> TrainConfig:
    """1.4 M parameters: 4 layers of width 120, for the codes of `codec_ablation.py`; it follows a melody."""
    model = LMConfig(
        layers=4,
        width=120,
        ffn=320,
        recall=False,
        semantic_vocab=256,
        code_levels=4,
        melody_span=4,
        condition=Condition(length=256, ids=1024),
    )
    return TrainConfig(
        stage=AcousticStage(part="coarse", model=model, frames_per_token=1),
        data=DataConfig(batch_size=4, window_tokens=256, text_prefix_probability=0.5),
        optimizer=OptimizerConfig(learning_rate=4e-3, muon=True, warmup_steps=60, weight_decay=0.1),
        steps=1_000,
        eval_every=100,
        matmul_precision="bfloat16",
        workdir="runs/coarse_ablation",
    )
