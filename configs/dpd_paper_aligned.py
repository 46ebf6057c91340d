"""The paper's dual-path diffusion on 2,560 frames, so that chunks align with semantic tokens (docs/mathematics.md).

melody train dpd_paper_aligned --data.folder features/train --workdir runs/dpd_paper_aligned
"""

from dataclasses import replace
from pathlib import Path

from melody_jax.config import TrainConfig, load_config, with_fields
from melody_jax.models import dpd


def config() -> TrainConfig:
    """As `dpd_paper.py`; some windows have a single angle, as in generation, and some a clean beginning."""
    paper = load_config(Path(__file__).with_name("dpd_paper.py"))
    return replace(
        paper,
        stage=replace(
            paper.stage,
            model=with_fields(dpd.PAPER_ALIGNED, dtype="bfloat16", remat="blocks"),
            shared_angle=0.3,
            clean_prefix=0.2,
        ),
        data=replace(paper.data, window_tokens=256),
        workdir="runs/dpd_paper_aligned",
    )
