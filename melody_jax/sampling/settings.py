"""The settings that all samplers share, each with one name, default, range and description."""

import dataclasses
import secrets
import sys
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from melody_jax import diffusion
from melody_jax.control_tokens import parse_key
from melody_jax.errors import UserError
from melody_jax.options import check_fields, option

MAX_SECONDS = 600
"""Longest clip and longest source, seconds."""
MAX_SEED = 2**64 - 1
DRAWN_SEED = -1
"""Stands for a seed that is drawn."""
WHAT = "what to make"
HOW = "how to sample"
WHERE = "where to write"
MODEL = "model"


TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
"""Type of a field -> what its values are called in an error."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingSettings:
    """How the language model samples tokens and how the diffusion samples latents.

    Raises `UserError` for a value out of its range.
    """

    seed: int = option(0, group=HOW, least=DRAWN_SEED, most=MAX_SEED)
    """Random seed. Item i of a batch uses seed + i. -1 draws a seed and prints it."""
    steps: int = option(5, group=HOW, least=1, most=1000)
    """Diffusion steps per window. The paper reports 5, 10 and 20."""
    schedule: str = option("paper", group=HOW, choices=tuple(diffusion.SCHEDULES))
    """Schedule of the diffusion angles (MeLoDy, arXiv 2305.15719, section 4.1)."""
    solver: str = option("ddim", group=HOW, choices=tuple(diffusion.SOLVERS))
    """Diffusion solver (docs/sampling.md)."""
    guidance_scale: float = option(2.5, group=HOW, least=-100, most=100)
    """Classifier-free guidance of the diffusion. 1 turns it off and halves the cost. The paper uses 2.5."""
    guidance_rescale: float = option(0.7, group=HOW, least=0, most=1)
    """How much of the loudness that guidance adds is taken back (arXiv 2305.08891, section 3.4). 0 in the paper."""
    lm_guidance_scale: float = option(2.0, group=HOW, least=-100, most=100)
    """Classifier-free guidance of the language model. 1 turns it off and halves the cost."""
    temperature: float = option(1.1, group=HOW, least=0, most=100)
    """Temperature of the language model. 0 is greedy."""
    top_k: int = option(250, group=HOW, least=1, most=2**31 - 1)
    """The language model samples from its k most likely tokens."""
    top_p: float = option(1.0, group=HOW, above=0, most=1)
    """The language model samples from the smallest set of most likely tokens with at least this probability."""

    def __post_init__(self) -> None:
        check_settings(self)


S = TypeVar("S", bound=SamplingSettings)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipSettings(SamplingSettings):
    """`SamplingSettings`, and the settings that belong to one clip.

    Raises `UserError` for a value out of its range.
    """

    bpm: float = option(0.0, group=WHAT, least=-1, most=1000)
    """Tempo in beats per minute, for models with control tokens. 0: what the prompt says or, with a tempo head, one
    that it may mean. -1: only what the prompt says."""
    key: str = option("", group=WHAT)
    """Key, such as "A minor" or "Bb major", for models with control tokens. Empty: what the prompt says."""
    metre: str = option("", group=WHAT)
    """Metre, such as "3/4", for models with control tokens. Empty: what the prompt says."""
    negative_prompt: str = option("", group=WHAT)
    """A text from which guidance steers the language model away. Empty: the null prefix takes its place."""
    strength: float = option(1.0, group=WHAT, above=0, most=1)
    """How much the source is changed: the diffusion starts at this fraction of the angle pi/2 (pure noise). Below
    1, the clip is a variation of the source."""
    keep_tokens: bool = option(False, group=WHAT)
    """Keeps the semantic tokens of a changed source, which carry most of its notes and rhythm."""
    control_scale: float = option(3.0, group=HOW, least=-100, most=100)
    """Used only with --key or --metre: guides the language model towards all control tokens, including those read
    from the prompt, and away from the same prompt without them. 1 turns it off. It raises the cost of the guided
    language model by half."""
    best_of: int = option(1, group=HOW, least=1, most=64)
    """Candidates per clip. The one closest to the prompt in MuLan's space is returned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if -1 < self.bpm < 0:
            raise UserError(f"bpm is {self.bpm:g}; it must be a tempo, 0 or -1")
        if self.key:
            parse_key(self.key)
        if self.guidance_scale == 1 and self.guidance_rescale != type(self).guidance_rescale:
            raise UserError(
                f"guidance_rescale is {self.guidance_rescale}, but guidance_scale is 1, without guidance; leave one out"
            )
        if self.negative_prompt and self.lm_guidance_scale == 1:
            raise UserError("negative_prompt needs guidance; lm_guidance_scale is 1, set e.g. 2")


def draw_seed() -> int:
    """A seed from the system's source of randomness, short enough to be typed again."""
    return secrets.randbelow(2**32)


def print_seed(seed: int) -> int:
    """Prints a drawn seed on stderr, so that its clip can be made again; returns it."""
    print(f"seed {seed}", file=sys.stderr)
    return seed


def with_drawn_seed(config: S) -> S:
    """The settings with a seed that is drawn and printed if theirs is -1."""
    return dataclasses.replace(config, seed=print_seed(draw_seed())) if config.seed == DRAWN_SEED else config


def shared_settings(
    config: SamplingSettings, kind: type[SamplingSettings] = SamplingSettings
) -> dict[str, Any]:
    """The fields of `kind`: name -> value in a config that inherits them."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(kind)}


def check_settings(config: Any) -> None:
    """Checks the types, ranges and choices of the fields of a dataclass instance (`options.option`).

    Raises:
        UserError: a field annotated `int`, `float`, `bool` or `str` holds something else, a text is not valid Unicode,
            or a value is out of its range.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kind = hints[field.name]
        if kind in TYPES and not _is_instance(value, kind):
            raise UserError(f"{field.name} is {shorten(value)}; it must be {TYPES[kind]}")
        if kind is str:
            check_unicode(value, field.name)
    check_fields(config)


def _is_instance(value: Any, kind: type) -> bool:
    """Whether a value may stand in a field of this type; numbers of NumPy count, and True is no number."""
    if kind in (bool, str):
        return isinstance(value, bool | np.bool if kind is bool else str)
    if isinstance(value, bool):
        return False
    return isinstance(value, int | np.integer if kind is int else int | float | np.number)


def check_unicode(text: str, name: str) -> None:
    """Raises `UserError` for a text with half of a surrogate pair, which no encoding has; `name` says whose it is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} {shorten(text)} is not valid Unicode: character {error.start + 1} is half of a surrogate pair, or "
            "a byte that is not UTF-8"
        ) from None


def shorten(value: Any, length: int = 60) -> str:
    """A value as an error shows it: a text in quotes; of a long one the beginning."""
    try:
        text = repr(value) if isinstance(value, str) else str(value)
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= length else f"{text[:length]}..."
