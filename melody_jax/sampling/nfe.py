"""How often the networks run for a clip (NFE, number of function evaluations): ours beside the paper's table 3.

    melody nfe --seconds 30 --model mini --steps 5

The paper counts a language model's pass for each token and the diffusion's steps, once however long the clip is; not
counted are encoders, decoder and the second pass of classifier-free guidance. MusicLM and Noise2Music are counted as
there: (25 + 200 + 400) tokens a second, and 1000 + 800 + 800 diffusion steps for a clip. Our other rows count what is
run: the windows of a longer piece, and both passes of guidance, which one batch holds.

For 10 s the paper's count is 270 of MusicLM's 6250, 95.7 % fewer; for 30 s 770 of 18750, 95.9 % fewer.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from melody_jax import diffusion
from melody_jax.errors import UserError
from melody_jax.models import dpd, vae
from melody_jax.models.denoiser import DenoiserConfig
from melody_jax.sampling.cascade import Melody, load
from melody_jax.sampling.request import MAX_SECONDS

MUSICLM_RATE = 25 + 200 + 400
"""Tokens a second of MusicLM's semantic, coarse and fine models: a pass each."""
NOISE2MUSIC_STEPS = 1000 + 800 + 800
"""Steps of Noise2Music's generator and its two cascaded ones."""
TOKEN_RATE = 25
"""Semantic tokens a second."""
PAPER_STEPS = 20
"""Diffusion steps of the paper's table 3."""


class Evaluations(NamedTuple):
    """Passes through the language model and through the diffusion network."""

    lm: int
    diffusion: int

    @property
    def total(self) -> int:
        """Of both."""
        return self.lm + self.diffusion


@dataclass(frozen=True, kw_only=True)
class NFEConfig:
    """Counts how often the networks run for a clip."""

    seconds: float = 10.0
    """Length of the clip, above 0, at most 600."""
    steps: int = 5
    """Diffusion steps of our rows, 1 to 1000."""
    distilled_steps: int = 2
    """The same of a distilled network, which needs no second pass for guidance."""
    solver: str = "ddim"
    """Of our rows: heun takes two passes a step but the last (`diffusion.SOLVERS`)."""
    model: str = "mini"
    """Name of a released model, whose windows ours are."""
    folder: Path | None = None
    """Where released models are; the package's own if left out."""


def as_in_paper(seconds: float, steps: int = PAPER_STEPS) -> Evaluations:
    """The count of the paper's table 3: 25 tokens a second and the steps of one window, whatever the length."""
    return Evaluations(round(TOKEN_RATE * seconds), steps)


def musiclm(seconds: float) -> int:
    """MusicLM's count for a clip, as the paper has it."""
    return round(MUSICLM_RATE * seconds)


def sampler(
    config: DenoiserConfig,
    frame_seconds: float,
    seconds: float,
    steps: int,
    *,
    guided: bool = False,
    lm_guided: bool = False,
    tokens_per_pass: int = 1,
) -> Evaluations:
    """What `Melody.generate` runs: a window, then a chunk at a time until `seconds` are there.

    frame_seconds: what one latent lasts. A window's tokens are all drawn, even for a shorter clip. steps: passes of the
    solver, for each window. Guidance doubles the passes of its network. tokens_per_pass: of the language model.
    """
    chunk = config.frames / config.chunks
    missing = seconds / frame_seconds - config.frames
    rounds = max(0, math.ceil(missing / chunk - 1e-9))
    tokens = (config.frames + rounds * chunk) / config.frames_per_token
    passes = math.ceil(math.floor(tokens) / tokens_per_pass)
    return Evaluations(passes * (1 + lm_guided), (1 + rounds) * steps * (1 + guided))


def table(settings: NFEConfig) -> list[tuple[str, Evaluations | int]]:
    """Rows: what is counted, and how often; of the paper's rivals only the sum is known.

    Raises `UserError` where a setting is out of its range, or the model or solver is unknown.
    """
    seconds = settings.seconds
    if not 0 < seconds <= MAX_SECONDS:
        raise UserError(f"seconds is {seconds}; it must be above 0 and at most {MAX_SECONDS:g}")
    for name in ("steps", "distilled_steps"):
        if not 1 <= getattr(settings, name) <= 1000:
            raise UserError(f"{name} is {getattr(settings, name)}; it must be a whole number from 1 to 1000")
    paper = partial(sampler, dpd.PAPER, vae.PAPER.hop / Melody.sample_rate, seconds, PAPER_STEPS)
    melody = load(settings.model, folder=settings.folder, networks=("lm", "dpd", "vae"))
    frame, per_pass = melody.configs["vae"].hop / melody.sample_rate, melody.configs["lm"].tokens_per_pass
    ours = partial(sampler, melody.configs["dpd"], frame, seconds, tokens_per_pass=per_pass)
    steps = diffusion.nfe(settings.solver, settings.steps)
    name = f"{settings.model}, {settings.steps} steps"
    return [
        ("MusicLM", musiclm(seconds)),
        ("Noise2Music", NOISE2MUSIC_STEPS),
        (f"MeLoDy as the paper counts, {PAPER_STEPS} steps", as_in_paper(seconds)),
        (f"MeLoDy's windows, {PAPER_STEPS} steps", paper()),
        (f"MeLoDy's windows, {PAPER_STEPS} steps, diffusion guided", paper(guided=True)),
        (name, ours(steps)),
        (f"{name}, diffusion guided", ours(steps, guided=True)),
        (f"{name}, both guided", ours(steps, guided=True, lm_guided=True)),
        (f"{settings.model} distilled, {settings.distilled_steps} steps", ours(settings.distilled_steps)),
        (
            f"{settings.model} distilled, {settings.distilled_steps} steps, LM guided",
            ours(settings.distilled_steps, lm_guided=True),
        ),
    ]


def nfe(settings: NFEConfig) -> None:
    """Prints the table. Raises `UserError` as `table` does."""
    reference = musiclm(settings.seconds)
    print(f"Passes through the networks for {settings.seconds:g} s of music\n")
    print(f"{'':<44}{'LM':>7}{'diffusion':>11}{'all':>8}{'of MusicLM':>12}")
    for name, found in table(settings):
        parts, total = (("", ""), found) if isinstance(found, int) else (found, found.total)
        print(f"{name:<44}{parts[0]:>7}{parts[1]:>11}{total:>8}{total / reference:>12.2%}")
