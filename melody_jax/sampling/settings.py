"""The settings that all samplers share, each with one name, default, range and description."""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

import numpy as np

from melody_jax import diffusion
from melody_jax.errors import UserError
from melody_jax.options import check_fields, option

MAX_SECONDS = 600
"""Longest clip and longest source, seconds."""
WHAT = "what to make"
HOW = "how to sample"
WHERE = "where to write"
MODEL = "model"


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingSettings:
    """How the language model samples tokens and how the diffusion samples latents.

    Raises `UserError` for a value out of its range.
    """

    seed: int = option(0, group=HOW, least=0, most=2**31 - 1)
    """Random seed. Item i of a batch uses seed + i."""
    steps: int = option(5, group=HOW, least=1, most=1000)
    """Diffusion steps per window. The paper reports 5, 10 and 20."""
    schedule: str = option("paper", group=HOW, choices=tuple(diffusion.SCHEDULES))
    """Schedule of the diffusion angles (MeLoDy, arXiv 2305.15719, section 4.1)."""
    solver: str = option("ddim", group=HOW, choices=tuple(diffusion.SOLVERS))
    """Diffusion solver (docs/sampling.md)."""
    guidance_scale: float = option(2.5, group=HOW, least=-100, most=100)
    """Classifier-free guidance of the diffusion. 1 turns it off and halves the cost. The paper uses 2.5."""
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


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipSettings(SamplingSettings):
    """`SamplingSettings`, and the settings that belong to one clip.

    Raises `UserError` for a value out of its range.
    """

    negative_prompt: str = option("", group=WHAT)
    """A text from which guidance steers the language model away. Empty: the null prefix takes its place."""
    strength: float = option(1.0, group=WHAT, above=0, most=1)
    """How much the source is changed: the diffusion starts at this fraction of the angle pi/2 (pure noise). Below
    1, the clip is a variation of the source."""
    keep_tokens: bool = option(False, group=WHAT)
    """Keeps the semantic tokens of a changed source, which carry most of its notes and rhythm."""
    best_of: int = option(1, group=HOW, least=1, most=64)
    """Candidates per clip. The one closest to the prompt in MuLan's space is returned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negative_prompt and self.lm_guidance_scale == 1:
            raise UserError("negative_prompt needs guidance; lm_guidance_scale is 1, set e.g. 2")


def shared_settings(
    config: SamplingSettings, kind: type[SamplingSettings] = SamplingSettings
) -> dict[str, Any]:
    """The fields of `kind`: name -> value in a config that inherits them."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(kind)}


def check_settings(config: Any) -> None:
    """Checks the numbers of a dataclass instance, and the ranges and choices of its fields
    (`options.option`).

    Raises:
        UserError: a field annotated `int` or `float` holds something else, or a value is out of its range.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if hints[field.name] is int and (isinstance(value, bool) or not isinstance(value, int | np.integer)):
            raise UserError(f"{field.name} is {value}; it must be a whole number")
        is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if hints[field.name] is float and not is_number:
            raise UserError(f"{field.name} is {value}; it must be a number")
    check_fields(config)
