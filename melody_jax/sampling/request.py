"""What one asks of the sampler for one clip: every setting, its range, and the line that says what is wrong with it."""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from melody_jax import diffusion
from melody_jax.errors import UserError

MAX_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One part of a blended prompt: words, or sound whose style is wanted (not its notes)."""

    text: str = ""
    """Words; or else `audio`."""
    audio: str | Path | np.ndarray | None = None
    """A sound file, or float32 (T,) at 24 kHz, of at least a second."""
    weight: float = 1.0
    """Its share beside the other parts' weights, -10 to 10; below 0 leads away from it."""

    def __post_init__(self) -> None:
        if bool(self.text.strip()) == (self.audio is not None):
            raise UserError(
                f"a part of a prompt has text or audio, one of the two; got {self.text!r} and {self.audio}"
            )
        _check_number("weight", self.weight, -10.0, 10.0)


Prompt = str | Sequence[Part]
"""Words, or several parts that are blended by weight."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A prompt that takes over at a time."""

    at: float
    """Seconds from the clip's beginning. The first chunk that begins there or later follows it."""
    prompt: Prompt
    """What is wanted from then on."""

    def __post_init__(self) -> None:
        _check_number("a scene's time", self.at, 0.0, MAX_SECONDS)
        parts(self.prompt)


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One clip. Equal requests give equal clips, whatever else is in their batch."""

    prompt: Prompt = ""
    """What is wanted; a text has at most as many word pieces as the text encoder takes (62). Empty: the style of the
    `source`."""
    negative_prompt: str = ""
    """What the language model is led away from, by `lm_guidance_scale`; empty: from having no prompt."""
    story: Sequence[Scene] = ()
    """Prompts that take over later, in the order of their times."""
    seconds: float = 10.0
    """Length, above 0, at most 600; what is longer than a window is continued chunk by chunk (section 3.5)."""
    seed: int = 0
    """In [0, 2**31)."""
    steps: int = 5
    """Diffusion steps of a window, 1 to 1000."""
    schedule: str = "paper"
    """Angle schedule, "paper" or "uniform" (section 3.4)."""
    solver: str = "ddim"
    """"ddim", "heun", "multistep" or "pingpong" (`diffusion.SOLVERS`)."""
    guidance_scale: float = 2.5
    """Of the diffusion; 1 is none, at half the cost (2.5 in the paper, section 3.5)."""
    lm_guidance_scale: float = 2.0
    """Of the language model; 1 is none. At the defaults mini's tokens repeat as often as those of real clips."""
    temperature: float = 1.1
    """Of the language model, 0 to 100; 0 is greedy."""
    top_k: int = 250
    """The language model draws from its k most likely tokens."""
    top_p: float = 1.0
    """And of those from the fewest that hold this share of their mass, above 0, at most 1."""
    best_of: int = 1
    """Clips made of which the one closest to the prompt in MuLan's space is kept, 1 to 64."""

    source: str | Path | np.ndarray | None = None
    """Music to work on, a sound file or float32 (T,) at 24 kHz, of a second to ten minutes. It is continued up to
    `seconds`, unless `regions`, `strength` or `keep_tokens` say what else: then the clip is as long as the source."""
    regions: Sequence[tuple[float, float]] = ()
    """(begin, end) in seconds of what is made anew within the source; all else stays to the sample."""
    strength: float = 1.0
    """How far what is made anew leaves the source: its diffusion starts at this share of pi/2, above 0, at most 1."""
    keep_tokens: bool = False
    """Keeps the source's semantic tokens (its notes and rhythm, mostly) where it is made anew."""

    def __post_init__(self) -> None:
        parts(self.scenes[0][1])
        times = [scene.at for scene in self.story]
        if times != sorted(times):
            raise UserError(f"the times of the story are {times}; they must rise")
        _check_number("seconds", self.seconds, 0.0, MAX_SECONDS)
        _check_integer("seed", self.seed, 0, 2**31 - 1)
        _check_integer("steps", self.steps, 1, 1000)
        _check_integer("top_k", self.top_k, 1, 2**31 - 1)
        _check_integer("best_of", self.best_of, 1, 64)
        for name in ("guidance_scale", "lm_guidance_scale"):
            _check_number(name, getattr(self, name), -100.0, 100.0)
        _check_number("temperature", self.temperature, -1e-9, 100.0)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        self._check_source()
        diffusion.angle_steps(self.schedule, self.steps)
        diffusion.nfe(self.solver, self.steps)
        if self.negative_prompt and self.lm_guidance_scale == 1:
            raise UserError("a negative_prompt needs guidance; lm_guidance_scale is 1, set e.g. 2")

    def _check_source(self) -> None:
        _check_number("strength", self.strength, 0.0, 1.0)
        if self.source is None and (self.regions or self.strength < 1 or self.keep_tokens):
            raise UserError("regions, strength and keep_tokens are about a source; there is none")
        for region in self.regions:
            if not isinstance(region, Sequence) or len(region) != 2 or not 0 <= region[0] < region[1]:
                raise UserError(f"region {region}; it must be (begin, end) in seconds, 0 <= begin < end")

    @property
    def continues(self) -> bool:
        """Whether the source is continued, not changed."""
        return self.source is not None and not (self.regions or self.strength < 1 or self.keep_tokens)

    @property
    def scenes(self) -> list[tuple[float, Prompt]]:
        """From when (seconds) which prompt holds, the first from 0."""
        first = self.prompt if self.prompt or self.source is None else (Part(audio=self.source),)
        return [(0.0, first), *((scene.at, scene.prompt) for scene in self.story)]


def parts(prompt: Prompt) -> tuple[Part, ...]:
    """A prompt as parts. Raises `UserError` if it is empty."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UserError(f"prompt {prompt!r} is empty; describe the music in a few words")
        return (Part(text=prompt),)
    if not prompt or not all(isinstance(part, Part) for part in prompt):
        raise UserError(f"prompt {prompt!r}; it must be a text or a sequence of Part")
    return tuple(prompt)


def make_requests(prompts: Prompt | Sequence[Prompt], settings: dict[str, Any]) -> list[Request]:
    """A request a prompt. Each setting is one value for all of them, or a list of one value each.

    One `seed` (0 if there is none) gives item i the seed + i.

    Raises:
        UserError: no prompts, an unknown setting, a list of another length, a value out of range.
    """
    wanted: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    if not wanted:
        raise UserError("no prompts; give at least one")
    known = {field.name for field in dataclasses.fields(Request)} - {"prompt"}
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise UserError(
                f"unknown setting {name!r}; " + (f"is {near[0]!r} meant?" if near else f"see {Request}")
            )
    columns = {name: _column(name, value, len(wanted)) for name, value in ({"seed": 0} | settings).items()}
    return [
        Request(prompt=prompt, **{name: values[i] for name, values in columns.items()})
        for i, prompt in enumerate(wanted)
    ]


def _column(name: str, value: Any, count: int) -> list[Any]:
    """The setting of each of `count` items."""
    if isinstance(value, list) or (isinstance(value, np.ndarray) and name != "source"):
        if len(value) != count:
            raise UserError(f"{len(value)} values of {name} for {count} prompts; give one, or one per prompt")
        return list(value)
    if name != "seed":
        return [value] * count
    _check_integer("seed", value, 0, 2**31 - count)
    return [value + i for i in range(count)]


def _check_number(name: str, value: float, above: float, most: float) -> None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not above < value <= most:
        least = f"{max(above, 0) if above > -1 else above:g}"
        raise UserError(f"{name} is {value}; it must be above {least} and at most {most:g}")


def _check_integer(name: str, value: Any, least: int, most: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{name} is {value}; it must be a whole number from {least} to {most}")
