"""A request for one clip: its prompt, its source and its settings, checked when it is made."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from melody_jax.audio_format import SAMPLE_RATE
from melody_jax.control_tokens import parse_key
from melody_jax.errors import UserError
from melody_jax.options import option
from melody_jax.sampling.settings import (
    DRAWN_SEED,
    MAX_SECONDS,
    ClipSettings,
    check_settings,
    check_unicode,
    draw_seed,
    print_seed,
    shorten,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One part of a blended prompt: a text, or audio that gives a style (not notes)."""

    text: str = ""
    """A text. Exactly one of `text` and `audio` is set."""
    audio: str | Path | ArrayLike | None = None
    """A sound file, one second to ten minutes long, or float32 (T,) or (T, 2) in the model's format."""
    weight: float = option(1.0, least=-10, most=10)
    """Weight relative to the other parts. A negative weight steers away from the part."""

    def __post_init__(self) -> None:
        check_settings(self)
        _check_sound(self.audio, "audio")
        if bool(self.text.strip()) == (self.audio is not None):
            sound = None if self.audio is None else shorten(self.audio)
            raise UserError(
                f"a part of a prompt has text or audio, one of the two; got {shorten(self.text)} and {sound}"
            )


SOUNDS = ("source", "melody")
"""Settings whose value may be samples."""
SEQUENCES = ("story", "regions")
"""Settings whose value is a sequence."""
LANGUAGE_MODEL_SETTINGS = (
    "negative_prompt",
    "lm_guidance_scale",
    "control_scale",
    "temperature",
    "top_k",
    "top_p",
)
"""Settings of the language model, which does not run with `keep_tokens`."""
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

    prompt: PromptLike | None = ""
    """A text of at most 62 word pieces (the text tower's limit), or parts. Empty: the source's style. None: no prompt,
    for a system without."""
    story: Sequence[Scene] = ()
    """Prompts that take over later, in the order of their times."""
    seconds: float = option(10.0, above=0, most=MAX_SECONDS)
    """Length in seconds. A clip longer than one window is continued chunk by chunk (MeLoDy,
    arXiv 2305.15719, section 4.3)."""
    source: str | Path | ArrayLike | None = None
    """Music to edit: a sound file, or float32 (T,) or (T, 2) in the model's format (`mini`: 24 kHz mono), one
    second to ten minutes long. It is continued up to `seconds`. With `regions`, `strength` or `keep_tokens` it
    is changed instead, and the clip is as long as the source."""
    melody: str | Path | ArrayLike | None = None
    """A hummed, sung or played tune that the music follows, for a system that can: a sound file, or samples as of
    `source`, one second to ten minutes long. The music is free after its end."""
    regions: Sequence[tuple[float, float]] = ()
    """(begin, end) in seconds of the parts of the source to regenerate. All other samples stay
    bit-identical."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed == DRAWN_SEED:
            object.__setattr__(self, "seed", print_seed(draw_seed()))
        if round(self.seconds * SAMPLE_RATE) < 1:
            raise UserError(f"seconds is {self.seconds}; it must be at least one sample, 1/{SAMPLE_RATE} s")
        for name in SOUNDS:
            _check_sound(getattr(self, name), name)
        self._check_edit()
        for _, prompt in self.scenes:
            prompt_parts(prompt)

    def _check_edit(self) -> None:
        """Raises `UserError` for a story or regions that are no sequences, or do not fit together."""
        if not isinstance(self.story, Sequence) or not all(isinstance(scene, Scene) for scene in self.story):
            raise UserError(f"story is {shorten(self.story)}; it must be a sequence of Scene")
        times = [scene.start for scene in self.story]
        if times != sorted(times):
            raise UserError(f"the times of the story are {times}; they must rise")
        if self.source is None and has_changes(vars(self)):
            raise UserError("regions, strength and keep_tokens need a source; there is none")
        for name in LANGUAGE_MODEL_SETTINGS if self.keep_tokens else ():
            if not self._is_default(name):
                raise UserError(
                    f"{name} is {shorten(getattr(self, name))}; keep_tokens leaves nothing to the language model, "
                    "leave it out"
                )
        if not isinstance(self.regions, Sequence):
            raise UserError(f"regions is {shorten(self.regions)}; it must be a sequence of (begin, end)")
        for region in self.regions:
            check_region(region)
        if self.changes_source and not self._is_default("seconds"):
            raise UserError(
                f"seconds is {self.seconds:g}; with regions, strength or keep_tokens a clip is as long as its source, "
                "leave it out"
            )

    def _is_default(self, name: str) -> bool:
        """Whether a setting has its default; a blank text is an empty one."""
        value = getattr(self, name)
        return (value.strip() if isinstance(value, str) else value) == getattr(type(self), name)

    @property
    def continues_source(self) -> bool:
        """Whether the source is continued rather than changed."""
        return self.source is not None and not self.changes_source

    @property
    def changes_source(self) -> bool:
        """Whether the source is changed rather than continued, so that the clip is as long as it."""
        return self.source is not None and has_changes(vars(self))

    @cached_property
    def scenes(self) -> tuple[tuple[float, PromptLike], ...]:
        """(start in seconds, prompt) in the order of time; the first starts at 0. Without a prompt there is none."""
        later = tuple((scene.start, scene.prompt) for scene in self.story)
        if not self.prompt and self.source is not None:
            return (0.0, (Part(audio=self.source),)), *later
        return later if self.prompt is None else ((0.0, self.prompt), *later)

    @property
    def controls(self) -> dict[str, Any]:
        """The facts (control_tokens.py) that the settings say."""
        given = {"tempo_bpm": max(float(self.bpm), 0.0), "metre": self.metre} | (
            parse_key(self.key) if self.key else {}
        )
        return {name: value for name, value in given.items() if value}

    @property
    def tells_key_or_metre(self) -> bool:
        """Whether the language model is guided by `control_scale`. For a tempo, the words of the prompt do better."""
        return bool(self.key or self.metre)

    @property
    def texts(self) -> tuple[PromptLike, ...]:
        """All prompts of the request, the negative one included."""
        negative = (self.negative_prompt,) if self.negative_prompt.strip() else ()
        return *(prompt for _, prompt in self.scenes), *negative


def has_changes(settings: Mapping[str, Any]) -> bool:
    """Whether settings, name -> value, change a source rather than continue it; they need not be checked."""
    return bool(settings.get("regions") or settings.get("keep_tokens") or settings.get("strength", 1) != 1)


def check_story(story: Sequence[Scene], seconds: float, sound: str) -> None:
    """Raises `UserError` for a scene that begins when the `sound`, a clip or a source, has ended."""
    if late := [scene.start for scene in story if scene.start >= seconds]:
        raise UserError(f"a scene of the story begins at {late[0]:g} s; the {sound} ends at {seconds:g} s")


def check_region(region: Any) -> None:
    """Raises `UserError` unless `region` is (begin, end) in seconds, at least one sample long."""
    is_pair = isinstance(region, Sequence) and len(region) == 2
    if not is_pair or not all(isinstance(end, int | float | np.number) for end in region):
        raise UserError(f"region {shorten(region)}; it must be (begin, end) in seconds, 0 <= begin < end")
    begin, end = region
    if not 0 <= begin < end <= MAX_SECONDS:
        raise UserError(f"region {region}; it must be (begin, end), 0 <= begin < end <= {MAX_SECONDS} s")
    if round(begin * SAMPLE_RATE) == round(end * SAMPLE_RATE):
        raise UserError(f"region {region}; it must be at least one sample long, 1/{SAMPLE_RATE} s")


def _check_sound(sound: Any, name: str) -> None:
    """Raises `UserError` unless `sound` is a path, an array or None."""
    if sound is not None and not isinstance(sound, str | Path) and not is_array(sound):
        raise UserError(f"{name} is {shorten(sound)}; it must be a sound file, or samples as a float32 array")


def is_array(value: Any) -> bool:
    """Whether a value is an array of NumPy or of a library that converts to it, as JAX."""
    return hasattr(value, "__array__") and hasattr(value, "ndim") and not isinstance(value, np.generic)


def prompt_parts(prompt: PromptLike) -> tuple[Part, ...]:
    """The parts of a prompt. Raises `UserError` if it is empty, or not a prompt."""
    if isinstance(prompt, str):
        check_unicode(prompt, "prompt")
        if not prompt.strip():
            raise UserError(f"prompt {prompt!r} is empty; describe the music in a few words")
        return (Part(text=prompt),)
    if not isinstance(prompt, Sequence) or not prompt or not all(isinstance(part, Part) for part in prompt):
        raise UserError(f"prompt {shorten(prompt)}; it must be a text or a sequence of Part")
    return tuple(prompt)


def make_requests(
    prompts: PromptLike | Sequence[PromptLike | None], settings: dict[str, Any]
) -> list[Request]:
    """One request per prompt. Each setting is one value for all of them, or a list, tuple or array of one per prompt.

    The values of `story` and `regions` are tuples themselves, so that only a list gives one per prompt; a `source` is
    always one for all unless it is a list. With a single `seed` (default 0), item i has seed + i; None and -1 draw a
    seed, which is printed. Without `seconds`, a request may be for an endless stream: its story is not compared with
    its length.

    Raises:
        UserError: there are no prompts, a setting is unknown, a list has another length than the prompts, a value is
            out of range, or a scene begins after its clip.
    """
    if not isinstance(prompts, str | Iterable):
        raise UserError(f"prompts is {shorten(prompts)}; it must be a text, or a list of them")
    items: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    if not items:
        raise UserError("no prompts; give at least one")
    names = {field.name for field in dataclasses.fields(Request)} - {"prompt"}
    for name in settings:
        if name not in names:
            closest = difflib.get_close_matches(name, names, 1)
            hint = f"is {closest[0]!r} meant?" if closest else f"the settings are {', '.join(sorted(names))}"
            raise UserError(f"unknown setting {shorten(name)}; {hint}")
    columns = {name: _column(name, value, len(items)) for name, value in ({"seed": 0} | settings).items()}
    requests = [
        Request(prompt=prompt, **{name: values[i] for name, values in columns.items()})
        for i, prompt in enumerate(items)
    ]
    for request in requests if "seconds" in settings else ():
        if not request.changes_source:
            check_story(request.story, request.seconds, "clip")
    scales = {request.control_scale for request in requests} - {Request.control_scale}
    if scales and not any(request.tells_key_or_metre for request in requests):
        raise UserError(f"control_scale is {scales.pop()}, but there is no key or metre; leave it out")
    return requests


def _column(name: str, value: Any, count: int) -> list[Any]:
    """The value of a setting for each of `count` items."""
    if is_array(value) and name not in SOUNDS:
        value = np.asarray(value).tolist()  # numbers of Python
    if isinstance(value, list) or (isinstance(value, tuple) and name not in SEQUENCES):
        if len(value) != count:
            raise UserError(f"{len(value)} values of {name} for {count} prompts; give one, or one per prompt")
        items = [item.item() if is_array(item) and item.ndim == 0 else item for item in value]
        return [DRAWN_SEED if name == "seed" and item is None else item for item in items]
    if name != "seed":
        return [value] * count
    if value is None or (value == DRAWN_SEED and not isinstance(value, bool)):
        value = print_seed(draw_seed())
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"seed is {shorten(value)}; it must be a whole number")
    return [int(value) + i for i in range(count)]
