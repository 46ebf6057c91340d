"""How many passes through its networks a clip takes."""

import math
from typing import NamedTuple

from melody_jax.models.denoiser import DenoiserConfig


class Evaluations(NamedTuple):
    """Passes through language models and through diffusion networks."""

    lm: int
    diffusion: int

    @property
    def total(self) -> int:
        """The sum of both."""
        return self.lm + self.diffusion


def cascade_count(
    config: DenoiserConfig,
    frame_seconds: float,
    seconds: float,
    steps: int,
    *,
    guided: bool = False,
    lm_guided: bool = False,
    tokens_per_pass: int = 1,
) -> Evaluations:
    """The passes that `Melody.generate` runs: for the first window, then for each chunk up to `seconds`.

    frame_seconds: seconds per latent frame. steps: passes of the solver per window. tokens_per_pass: of the
    language model. All tokens of a window are sampled, even for a shorter clip. Guidance doubles the passes
    of its network.
    """
    chunk_frames = config.frames / config.chunks
    missing_frames = seconds / frame_seconds - config.frames
    chunks = max(0, math.ceil(missing_frames / chunk_frames - 1e-9))
    tokens = (config.frames + chunks * chunk_frames) / config.frames_per_token
    passes = math.ceil(math.floor(tokens) / tokens_per_pass)
    return Evaluations(passes * (1 + lm_guided), (1 + chunks) * steps * (1 + guided))
