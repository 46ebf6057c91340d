"""MuLan of the paper's size: an AST for music, BERT-base for text.

MeLoDy (arXiv 2305.15719) section 3.1; MuLan is arXiv 2208.12415.

    melody train mulan_paper --data.folder corpus/train --workdir runs/mulan_paper \\
        --stage.music-weights AST --stage.text-weights BERT --data.text-tokenizer BERT/tokenizer.json

AST is the folder of MIT/ast-finetuned-audioset-10-10-0.4593 (BSD-3-Clause), BERT that of bert-base-uncased
(Apache-2.0). Without them the weights start at random; the tokenizer is needed in any case.
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig, with_fields
from melody_jax.models import mulan
from melody_jax.training.stages.mulan import MuLanStage

MASK = 103
"""[MASK] in BERT's vocabulary."""


def config() -> TrainConfig:
    """195.3 M parameters. Batch, rate and steps are our choice."""
    return TrainConfig(
        stage=MuLanStage(model=with_fields(mulan.PAPER, dtype="bfloat16"), mask_piece=MASK),
        data=DataConfig(batch_size=1024, crop_samples=245_760),
        optimizer=OptimizerConfig(learning_rate=4e-5, warmup_steps=2_000),
        steps=100_000,
        eval_every=1_000,
        ema_decay=0.9999,
        workdir="runs/mulan_paper",
    )
