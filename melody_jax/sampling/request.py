"""A request for one clip: its prompt, its source and its settings, checked when it is made."""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from melody_jax.errors import UserError
from melody_jax.options import option
from melody_jax.sampling.settings import MAX_SECONDS, ClipSettings, check_settings


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One part of a blended prompt: a text, or audio that gives a style (not notes)."""

    text: str = ""
    """A text. Exactly one of `text` and `audio` is set."""
    audio: str | Path | np.ndarray | None = None
    """A sound file, or float32 (T,) at 24 kHz, at least one second long."""
    weight: float = option(1.0, least=-10, most=10)
    """Weight relative to the other parts. A negative weight steers away from the part."""

    def __post_init__(self) -> None:
        if bool(self.text.strip()) == (self.audio is not None):
            raise UserError(
                f"a part of a prompt has text or audio, one of the two; got {self.text!r} and {self.audio}"
            )
        check_settings(self)


PromptLike = str | Sequence[Part]
"""A text, or several parts that are blended by weight."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A prompt that takes over at a given time."""

    start: float = option(dataclasses.MISSING, least=0, most=MAX_SECONDS)
    """Seconds from the clip's beginning. The first chunk that begins at this time or later follows the
    prompt."""
    prompt: PromptLike
    """The prompt from then on."""

    def __post_init__(self) -> None:
        check_settings(self)
        prompt_parts(self.prompt)


@dataclass(frozen=True, kw_only=True, eq=False)
class Request(ClipSettings):
    """A request for one clip. Equal requests give equal clips, independently of their batch.

    Raises `UserError` for a value out of its range.
    """

    prompt: PromptLike = ""
    """A text of at most 62 word pieces (the text tower's limit), or parts. Empty: the source's style."""
    story: Sequence[Scene] = ()
    """Prompts that take over later, in the order of their times."""
    seconds: float = option(10.0, above=0, most=MAX_SECONDS)
    """Length in seconds. A clip longer than one window is continued chunk by chunk (MeLoDy,
    arXiv 2305.15719, section 4.3)."""
    source: str | Path | np.ndarray | None = None
    """Music to edit: a sound file or float32 (T,) at 24 kHz, one second to ten minutes long. It is continued
    up to `seconds`. With `regions`, `strength` or `keep_tokens` it is changed instead, and the clip is as
    long as the source."""
    regions: Sequence[tuple[float, float]] = ()
    """(begin, end) in seconds of the parts of the source to regenerate. All other samples stay
    bit-identical."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for _, prompt in self.scenes:
            prompt_parts(prompt)
        times = [scene.start for scene in self.story]
        if times != sorted(times):
            raise UserError(f"the times of the story are {times}; they must rise")
        if self.source is None and (self.regions or self.strength < 1 or self.keep_tokens):
            raise UserError("regions, strength and keep_tokens need a source; there is none")
        for region in self.regions:
            if not isinstance(region, Sequence) or len(region) != 2 or not 0 <= region[0] < region[1]:
                raise UserError(f"region {region}; it must be (begin, end) in seconds, 0 <= begin < end")

    @property
    def continues_source(self) -> bool:
        """Whether the source is continued rather than changed."""
        return self.source is not None and not (self.regions or self.strength < 1 or self.keep_tokens)

    @cached_property
    def scenes(self) -> tuple[tuple[float, PromptLike], ...]:
        """(start in seconds, prompt) in the order of time; the first starts at 0."""
        first = self.prompt if self.prompt or self.source is None else (Part(audio=self.source),)
        return (0.0, first), *((scene.start, scene.prompt) for scene in self.story)


def prompt_parts(prompt: PromptLike) -> tuple[Part, ...]:
    """The parts of a prompt. Raises `UserError` if it is empty."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UserError(f"prompt {prompt!r} is empty; describe the music in a few words")
        return (Part(text=prompt),)
    if not prompt or not all(isinstance(part, Part) for part in prompt):
        raise UserError(f"prompt {prompt!r}; it must be a text or a sequence of Part")
    return tuple(prompt)


def make_requests(prompts: PromptLike | Sequence[PromptLike], settings: dict[str, Any]) -> list[Request]:
    """One request per prompt. Each setting is one value for all of them, or a list of one value per prompt.

    With a single `seed` (default 0), item i has seed + i.

    Raises:
        UserError: there are no prompts, a setting is unknown, a list has another length than the prompts, or a value is
            out of range.
    """
    items: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    if not items:
        raise UserError("no prompts; give at least one")
    names = {field.name for field in dataclasses.fields(Request)} - {"prompt"}
    for name in settings:
        if name not in names:
            closest = difflib.get_close_matches(name, names, 1)
            hint = f"is {closest[0]!r} meant?" if closest else f"the settings are {', '.join(sorted(names))}"
            raise UserError(f"unknown setting {name!r}; {hint}")
    columns = {name: _column(name, value, len(items)) for name, value in ({"seed": 0} | settings).items()}
    return [
        Request(prompt=prompt, **{name: values[i] for name, values in columns.items()})
        for i, prompt in enumerate(items)
    ]


def _column(name: str, value: Any, count: int) -> list[Any]:
    """The value of a setting for each of `count` items."""
    if isinstance(value, list) or (isinstance(value, np.ndarray) and name != "source"):
        if len(value) != count:
            raise UserError(f"{len(value)} values of {name} for {count} prompts; give one, or one per prompt")
        return list(value)
    if name != "seed":
        return [value] * count
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"seed is {value}; it must be a whole number")
    return [value + i for i in range(count)]
