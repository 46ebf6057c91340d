"""`melody nfe`: the number of function evaluations (NFE) per clip, compared with the paper's table 3.

    melody nfe --seconds 30 --model mini --steps 5
    melody nfe --seconds 30 --system musiclm --model musiclm --folder release

Table 3 of MeLoDy (arXiv 2305.15719) counts one pass of the language model per token, and the diffusion steps
once for a clip of any length. It does not count encoders, the decoder and the second pass of classifier-free
guidance. For MusicLM it counts (25 + 200 + 400) tokens per second, for Noise2Music 1000 + 800 + 800 diffusion
steps per clip. The other rows count what this package runs: the windows of a longer clip, and both passes of
guidance (one batch). For a model of MusicLM or AudioLM, the passes are counted while it writes one clip, without
guidance; for one of another system, they follow from the number of steps and the solver.

For 10 s the paper counts 270 passes, 95.7 % fewer than MusicLM's 6250; for 30 s 770, 95.9 % fewer than 18750.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from melody_jax import diffusion
from melody_jax.audio_format import TOKEN_RATE
from melody_jax.errors import UserError
from melody_jax.models import dpd, vae
from melody_jax.options import option
from melody_jax.sampling.passes import Evaluations, cascade_count
from melody_jax.sampling.request import Request
from melody_jax.sampling.settings import MAX_SECONDS, MODEL, SamplingSettings, check_settings
from melody_jax.systems import SYSTEMS, load

MUSICLM_RATE = TOKEN_RATE + 200 + 400
"""Tokens per second of MusicLM's semantic, coarse and fine models; each token is one pass."""
NOISE2MUSIC_STEPS = 1000 + 800 + 800
"""Diffusion steps of Noise2Music's generator and its two cascaded models."""
PAPER_STEPS = 20
"""Diffusion steps of the paper's table 3."""
UNUSED = {
    "melody": (),
    "musiclm": ("steps", "solver", "distilled_steps"),
    "audiolm": ("steps", "solver", "distilled_steps"),
    "noise2music": ("distilled_steps",),
    "mousai": ("distilled_steps",),
}
"""System -> the options that its count does not depend on."""


@dataclass(frozen=True, kw_only=True)
class NFEConfig:
    """Counts network evaluations per clip, compared with the paper's table 3."""

    seconds: float = option(10.0, above=0, most=MAX_SECONDS, group="what to count")
    """Length of the clip in seconds."""
    steps: int = option(SamplingSettings.steps, least=1, most=1000)
    """Diffusion steps per window."""
    distilled_steps: int = option(2, least=1, most=1000)
    """Diffusion steps per window of a distilled network, which needs no second pass for guidance."""
    solver: str = option(SamplingSettings.solver, choices=tuple(diffusion.SOLVERS))
    """Diffusion solver; heun runs the network twice per step, except in the last."""
    model: str = option("mini", group=MODEL)
    """Name of a released model, or owner/name of one on the Hugging Face Hub."""
    folder: Path | None = None
    """Folder of released models. Default: those that ship with the package."""
    system: str = option("melody", choices=tuple(SYSTEMS))
    """Kind of the model."""

    def __post_init__(self) -> None:
        check_settings(self)
        for name in UNUSED[self.system]:
            value = getattr(self, name)
            if value != getattr(type(self), name):
                raise UserError(f"{name} is {value}: {self.system} has no such setting; leave it out")


def paper_count(seconds: float, steps: int = PAPER_STEPS) -> Evaluations:
    """The count of the paper's table 3: 25 tokens per second, and the steps of one window."""
    return Evaluations(round(TOKEN_RATE * seconds), steps)


def musiclm_count(seconds: float) -> int:
    """The count of the paper's table 3 for MusicLM."""
    return round(MUSICLM_RATE * seconds)


def table(settings: NFEConfig) -> list[tuple[str, Evaluations | int]]:
    """Rows (name, count); for the systems that the paper compares with, only the sum is known.

    Raises `UserError` if the model is unknown.
    """
    seconds = settings.seconds
    rows: list[tuple[str, Evaluations | int]] = [
        ("MusicLM", musiclm_count(seconds)),
        ("Noise2Music", NOISE2MUSIC_STEPS),
        (f"MeLoDy as the paper counts, {PAPER_STEPS} steps", paper_count(seconds)),
    ]
    if settings.system == "melody":
        return rows + melody_rows(settings)
    system = load(settings.model, system=settings.system, folder=settings.folder)
    return [
        *rows,
        (
            f"{settings.model} ({settings.system}), not guided",
            system.count_passes(_request(settings)),
        ),
    ]


def _request(settings: NFEConfig) -> Request:
    """A clip of another system; what has no diffusion has no steps either."""
    used = {"steps", "solver"} - set(UNUSED[settings.system])
    given: dict[str, Any] = {name: getattr(settings, name) for name in used}
    prompt = None if settings.system == "audiolm" else "any"
    return Request(prompt=prompt, seconds=settings.seconds, **given)


def melody_rows(settings: NFEConfig) -> list[tuple[str, Evaluations | int]]:
    """The rows of what MeLoDy's cascade runs at the paper's size and at that of a released model."""
    seconds = settings.seconds
    paper = partial(
        cascade_count, dpd.PAPER, vae.PAPER.hop / vae.PAPER.audio_format.sample_rate, seconds, PAPER_STEPS
    )
    melody = load(settings.model, folder=settings.folder, networks=("lm", "dpd", "vae"))
    frame_seconds = melody.configs["vae"].hop / melody.sample_rate
    per_pass = melody.configs["lm"].tokens_per_pass
    model = partial(cascade_count, melody.configs["dpd"], frame_seconds, seconds, tokens_per_pass=per_pass)
    steps, few_steps = (
        diffusion.nfe(settings.solver, count) for count in (settings.steps, settings.distilled_steps)
    )
    name = f"{settings.model}, {settings.steps} steps"
    distilled = f"{settings.model} distilled, {settings.distilled_steps} steps"
    return [
        (f"MeLoDy's windows, {PAPER_STEPS} steps", paper()),
        (f"MeLoDy's windows, {PAPER_STEPS} steps, diffusion guided", paper(guided=True)),
        (name, model(steps)),
        (f"{name}, diffusion guided", model(steps, guided=True)),
        (f"{name}, both guided", model(steps, guided=True, lm_guided=True)),
        (distilled, model(few_steps)),
        (f"{distilled}, LM guided", model(few_steps, lm_guided=True)),
    ]


def nfe(settings: NFEConfig) -> None:
    """Prints the table. Raises `UserError` as `table` does."""
    reference = musiclm_count(settings.seconds)
    rows = table(settings)
    print(f"Network evaluations for {settings.seconds:g} s of music\n")
    print(f"{'':<44}{'LM':>7}{'diffusion':>11}{'total':>8}{'of MusicLM':>12}")
    for name, count in rows:
        if isinstance(count, int):
            lm, steps, total = "", "", count
        else:
            lm, steps, total = count.lm, count.diffusion, count.total
        print(f"{name:<44}{lm:>7}{steps:>11}{total:>8}{total / reference:>12.2%}")
