"""Is dual-path diffusion the better network (MeLoDy, table 5)? Backbones of equal size on the same latents.

melody ablate backbones --folder features/audio --validation-folder features/validation --workers 2
"""

from pathlib import Path

from melody_jax.ablation.study import Claim, Study
from melody_jax.config import load_config
from melody_jax.models import dit, unet1d, unet2d


def study() -> Study:
    """DPD, a U-Net over time, a U-Net on the latents as an image, and a transformer; all draws are shared."""
    return Study(
        title="Backbones",
        question="Does DPD predict the velocity better than U-Nets in the style of Moûsai and Riffusion, and than a "
        "transformer, with 1.8 M parameters each?",
        base=load_config(Path(__file__).parents[1] / "dpd_ablation.py"),
        arms={
            "DPD": {},
            "UNet-1D": {"stage.model": unet1d.ABLATION},
            "UNet-2D": {"stage.model": unet2d.ABLATION},
            "DiT": {"stage.model": dit.ABLATION},
        },
        metrics=(
            "velocity_mse", "si_snri", "velocity_mse_chunks", "continuation_mse", "log_mel_l1", "mulan_similarity",
            "kernel_distance",
        ),
        claims=(
            Claim(arm="UNet-1D", metric="velocity_mse", says="worse", source="Table 5, velocity MSE 0.13 against 0.12"),
            Claim(arm="UNet-1D", metric="si_snri", says="worse", source="Table 5, SI-SNRi 5.33 against 6.15 dB"),
            Claim(arm="UNet-2D", metric="velocity_mse", says="worse", source="Table 5, velocity MSE 0.15 against 0.12"),
            Claim(arm="UNet-2D", metric="si_snri", says="worse", source="Table 5, SI-SNRi 4.96 against 6.15 dB"),
        ),
        limits="All arms use the learning rate that was tuned for DPD. The paper's networks have 300 M parameters, and "
        "its latents have 250 Hz.",
    )  # fmt: skip
