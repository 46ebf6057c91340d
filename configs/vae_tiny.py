"""The autoencoder at the size of the tests: a run takes seconds, discriminators included.

melody train vae_tiny --data.folder corpus/tiny --workdir runs/vae_tiny
"""

from melody_jax.config import DataConfig, OptimizerConfig, TrainConfig
from melody_jax.models import discriminators, vae
from melody_jax.training.stages.vae import VAEStage


def config() -> TrainConfig:
    """One block per rate, 64 k parameters, crops of 0.4 s, two spectral resolutions."""
    return TrainConfig(
        stage=VAEStage(
            model=vae.TINY,
            discriminator=discriminators.TINY,
            resolutions=((1024, 240), (256, 60)),
            adversarial_start=40,
            adversarial_ramp=10,
            adversarial_crop=4_800,
        ),
        data=DataConfig(batch_size=4, crop_samples=9_600),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5),
        steps=50,
        eval_every=25,
        workdir="runs/vae_tiny",
    )
