"""What holds dual-path diffusion back: its identity path, its modulation, its fine path, or the layout itself?

melody ablate dual_path --folder features/audio --validation-folder features/validation --workers 2
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.ablation.study import Study
from melody_jax.config import load_config
from melody_jax.models import dit

PRE_NORM = {"stage.model.residual": "pre_norm"}
ADALN = PRE_NORM | {"stage.model.film": "adaln"}
ATTENTION = ADALN | {"stage.model.fine": "local_attention"}


def study() -> Study:
    """From the printed layout to the transformer, one field at a time; all draws are shared."""
    return Study(
        title="Dual paths, one field at a time",
        question="Which step from DPD as printed to a diffusion transformer lowers the velocity error: an identity "
        "path that is not blurred, norms before the paths, modulation of each frame, attention inside the segments, "
        "or attention over all frames?",
        base=replace(load_config(Path(__file__).parents[1] / "dpd_ablation.py"), steps=1_000),
        arms={
            "printed": {},
            "post-norm": {"stage.model.residual": "post_norm"},
            "pre-norm": PRE_NORM,
            "AdaLN": ADALN,
            "local attention": ATTENTION,
            "unmerged": ATTENTION | {"stage.model.merge": False},
            "DiT": {"stage.model": dit.ABLATION},
        },
        metrics=(
            "velocity_mse",
            "si_snri",
            "velocity_mse_chunks",
            "continuation_mse",
            "log_mel_l1",
            "mulan_similarity",
            "kernel_distance",
        ),
        limits="Each arm from pre-norm to unmerged keeps the fields of the one before it. All arms use the learning "
        "rate that was tuned for the printed layout. Windows have 128 frames, where attention over all of them is "
        "cheap.",
    )
