"""The semantic language model of `mini`: 12 prefix tokens and control tokens to 256 semantic tokens, 10.24 s.

    melody train lm_mini --data.folder features/train --data.networks release/mini \\
        --stage.mulan release/mini --stage.tokenizer release/mini --workdir runs/lm_mini

The last two options start the embeddings from the codebooks of the networks that made the tokens; recall relies on it.
The released weights learned the control tokens afterwards: 2,000 steps with `LMConfig()` as the model, then

    melody train lm_mini --data.folder features/train features/train2 --data.networks release/mini \\
        --init-from release/mini --steps 1500 --optimizer.learning-rate 2e-3 --optimizer.warmup-steps 30 \\
        --workdir runs/lm_mini_controls
"""

from melody_jax.composer.facts import VOCABULARY
from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.lm_config import LMConfig
from melody_jax.training.stages.lm import LMStage


def config() -> TrainConfig:
    """5 layers of width 192, with recall; 2.2 M parameters in the blocks, 50 minutes on two CPU cores."""
    return TrainConfig(
        stage=LMStage(model=LMConfig(controls=VOCABULARY), history_corruption=0.1),
        data=DataConfig(batch_size=16, window_tokens=256, text_prefix_probability=0.5),
        optimizer=OptimizerConfig(learning_rate=4e-3, muon=True, warmup_steps=60, weight_decay=0.1),
        steps=2_000,
        eval_every=100,
        matmul_precision="bfloat16",
        workdir="runs/lm_mini",
    )
