"""Which parts of DPD's conditioning matter: semantic tokens, cross-attention, FiLM?

melody ablate conditioning --folder features/audio --validation-folder features/validation
"""

from pathlib import Path

from melody_jax.ablation.study import Study
from melody_jax.config import load_config


def study() -> Study:
    """Every arm removes one part; all draws are shared, except the tokens of the arm without semantic
    tokens."""
    return Study(
        title="Conditioning",
        question="What do the semantic tokens contribute, and what do cross-attention and FiLM add if the input of "
        "each frame already contains its token and its angle?",
        base=load_config(Path(__file__).parents[1] / "dpd_ablation.py"),
        arms={
            "all": {},
            "no semantic tokens": {"stage.token_corruption": 1.0},
            "no cross-attention": {"stage.model.cross_attention": False},
            "no FiLM": {"stage.model.film": "none"},
        },
        metrics=(
            "velocity_mse",
            "si_snri",
            "continuation_mse",
            "log_mel_l1",
            "mulan_similarity",
            "kernel_distance",
        ),
        differs=("tokens",),
        limits="The arm without semantic tokens trains on random tokens and keeps the MuLan prefix. The arms without "
        "cross-attention and FiLM have fewer parameters (see Cost). The paper reports no such ablation.",
    )
