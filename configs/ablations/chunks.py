"""Do the number of chunks with independent angles, and a training mixture that resembles sampling, matter?

melody ablate chunks --folder features/audio --validation-folder features/validation --workers 2
"""

from pathlib import Path

from melody_jax.ablation.study import Study
from melody_jax.config import load_config

UNMIXED = {"stage.shared_angle": 0.0, "stage.clean_prefix": 0.0}


def study() -> Study:
    """Four arms that differ in their angles; batches, noise and dropped conditions are shared."""
    return Study(
        title="Chunks, shared angles and clean prefixes",
        question="How do M = 1, 2 or 4 chunks with independent angles affect a continuation, and does it help to train "
        "half of the items with one shared angle and a fifth with a clean prefix?",
        base=load_config(Path(__file__).parents[1] / "dpd_ablation.py"),
        arms={
            "M = 4, mixed": {},
            "M = 4": UNMIXED,
            "M = 2, mixed": {"stage.model.chunks": 2},
            "M = 1": {"stage.model.chunks": 1} | UNMIXED,
        },
        metrics=(
            "continuation_mse", "continuation_si_snri", "velocity_mse", "si_snri", "velocity_mse_chunks",
            "log_mel_l1", "mulan_similarity", "kernel_distance",
        ),
        differs=("angle",),
        limits="The paper trains M = 4 without the mixture and reports no other M.",
    )  # fmt: skip
