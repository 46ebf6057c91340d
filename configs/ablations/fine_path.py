"""Which network should run inside the segments: the paper's SRU, a linear recurrence or local attention?

melody ablate fine_path --folder features/audio --validation-folder features/validation --workers 2
"""

from pathlib import Path

from melody_jax.ablation.study import Study
from melody_jax.config import load_config


def study() -> Study:
    """Three fine paths with equal numbers of parameters; all draws are shared."""
    return Study(
        title="The fine path",
        question="Is DPD's SRU, whose steps run one after the other, better than a linear recurrence (all steps in "
        "parallel, by an associative scan) and than attention inside a segment?",
        base=load_config(Path(__file__).parents[1] / "dpd_ablation.py"),
        arms={
            "SRU": {},
            "linear recurrence": {"stage.model.fine": "linear_recurrence"},
            "local attention": {"stage.model.fine": "local_attention"},
        },
        metrics=(
            "velocity_mse",
            "si_snri",
            "continuation_mse",
            "log_mel_l1",
            "mulan_similarity",
            "kernel_distance",
        ),
        limits="Times are for one CPU thread, where a parallel scan has no advantage. The paper reports no such "
        "ablation.",
    )
