"""Which paths of DPD's condition matter: semantic tokens, cross-attention, FiLM?

    melody ablate conditioning --folder features/audio --validation-folder features/validation
"""

from pathlib import Path

from melody_jax.ablation.study import Study
from melody_jax.config import load_config


def study() -> Study:
    """One path is removed per arm; all random draws are shared, except for tokens in the arm without them."""
    return Study(
        title="Conditioning",
        question="What do the semantic tokens tell, and what do cross-attention and FiLM add when each frame hears "
        "its token and its angle at the input too?",
        base=load_config(Path(__file__).parents[1] / "dpd_ablation.py"),
        arms={
            "all": {},
            "no semantic tokens": {"stage.token_corruption": 1.0},
            "no cross-attention": {"stage.model.cross_attention": False},
            "no FiLM": {"stage.model.film": "none"},
        },
        metrics=("velocity_mse", "si_snri", "continuation_mse", "log_mel_l1", "mulan_similarity", "frechet"),
        differs=("tokens",),
        limits="The arm without semantic tokens is trained on random ones and keeps the MuLan prefix; the arms without "
        "cross-attention and FiLM have fewer parameters (see Cost). The paper has no figures.",
    )
