"""The dual-path diffusion on the latents of `vae_bass`: 256 semantic tokens to 256 latents of 64 channels, 10.24 s.

    melody train dpd_bass --data.folder features/train --data.networks release/bass \\
        --stage.mulan release/bass --stage.tokenizer release/bass --workdir runs/dpd_bass

The released weights were then trained on with 24 h of music:

    melody train dpd_bass --data.folder features/train features/train2 --data.networks release/bass \\
        --init-from release/bass --steps 880 --optimizer.learning-rate 1.5e-3 --workdir runs/dpd_bass_longer
"""

import dataclasses

from melody_jax.composer.facts import VOCABULARY
from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.dpd import MINI
from melody_jax.training.stages.dpd import DPDStage


def config() -> TrainConfig:
    """4 blocks of width 256 with control tokens, and modulation, norms and gates as in a DiT.

    11.1 M parameters, 8.4 GFLOP per pass; 2.0 s a step on two cores with AMX.
    """
    model = dataclasses.replace(
        MINI,
        width=256,
        heads=8,
        sru_hidden=128,
        residual="pre_norm",
        film="adaln",
        controls=VOCABULARY,
    )
    return TrainConfig(
        stage=DPDStage(model=model, shared_angle=0.5, clean_prefix=0.2, token_corruption=0.03),
        data=DataConfig(batch_size=8, window_tokens=256, text_prefix_probability=0.5),
        optimizer=OptimizerConfig(learning_rate=3e-3, muon=True, warmup_steps=60),
        steps=1_300,
        eval_every=100,
        ema_decay=0.998,
        matmul_precision="bfloat16",
        workdir="runs/dpd_bass",
    )
