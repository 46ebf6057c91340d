"""The semantic language model of `mini`: 12 prefix tokens to 256 semantic tokens, 10.24 s.

    melody train lm_mini --data.folder features/mini --data.networks release/mini \\
        --stage.mulan release/mini --stage.tokenizer release/mini --workdir runs/lm_mini

The last two options start the embeddings from the codebooks of the networks that made the tokens; recall relies on it.
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models.lm_config import LMConfig
from melody_jax.training.stages.lm import LMStage


def config() -> TrainConfig:
    """5 layers of width 192, with recall; 2.2 M parameters in the blocks, 50 minutes on two CPU cores."""
    return TrainConfig(
        stage=LMStage(model=LMConfig(), history_corruption=0.1),
        data=DataConfig(batch_size=16, window_tokens=256, text_prefix_probability=0.5),
        optimizer=OptimizerConfig(learning_rate=4e-3, muon=True, warmup_steps=60, weight_decay=0.1),
        steps=2_000,
        eval_every=100,
        workdir="runs/lm_mini",
    )
