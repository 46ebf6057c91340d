"""What should run inside the segments: the paper's SRU, a linear recurrence or local attention?

    melody ablate fine_path --folder features/audio --validation-folder features/validation --workers 2
"""

from pathlib import Path

from melody_jax.ablation.study import Study
from melody_jax.config import load_config


def study() -> Study:
    """Three forms of the fine path with as many parameters; all random draws are shared."""
    return Study(
        title="The fine path",
        question="Does DPD's SRU, whose steps must be done one after the other, earn its place beside a linear "
        "recurrence (all steps at once, by an associative scan) and attention inside a segment?",
        base=load_config(Path(__file__).parents[1] / "dpd_ablation.py"),
        arms={
            "SRU": {},
            "linear recurrence": {"stage.model.fine": "linear_recurrence"},
            "local attention": {"stage.model.fine": "local_attention"},
        },
        metrics=("velocity_mse", "si_snri", "continuation_mse", "log_mel_l1", "mulan_similarity", "frechet"),
        limits="Seconds are of one CPU thread, where a parallel scan has nothing to gain. The paper has no figures.",
    )
