"""What a system can make, read from its own checks: no network runs, and no list of systems is kept here."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from melody_jax.control_tokens import KEYS, ControlVocabulary
from melody_jax.errors import UserError
from melody_jax.sampling.request import Part, Request, Scene
from melody_jax.sampling.system import System

PROMPT = "calm piano"
"""The prompt of the requests that are checked."""
STEPS = range(1, 31)
"""Numbers of diffusion steps that the page offers."""
DISTILLED_STEPS = (1, 2, 4)
"""Those that distilled networks are trained for (docs/distillation.md)."""
GUIDANCE_SCALES = tuple(step / 2 for step in range(2, 17))
"""Guidance scales that the page offers, 1 to 8."""
LONGEST_SECONDS = 120.0
"""Longest clip that the page offers, seconds."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a page may offer for a system. All fields are JSON values."""

    prompt: bool
    """Whether it follows a prompt."""
    blend: bool
    """Whether a prompt may have several parts."""
    style: bool
    """Whether a part of a prompt may be a sound."""
    negative_prompt: bool
    story: bool
    bpm: bool
    keys: tuple[str, ...]
    metres: tuple[str, ...]
    """Their values; empty without such controls."""
    steps: tuple[int, ...]
    guidance_scales: tuple[float, ...]
    """Rising; empty for a system without a diffusion."""
    longest_seconds: float
    continuation: bool
    """Whether it continues a source."""
    mend: bool
    """Whether it makes regions of a source again."""
    variation: bool
    """Whether it changes a source by a strength."""
    restyle: bool
    """Whether it keeps the semantic tokens of a source."""
    melody: bool
    """Whether it follows a tune."""


def features(system: System, distilled: bool = False) -> Features:
    """What a loaded system can make; `distilled`: whether its diffusion is."""

    def accepts(source_seconds: float | None = None, **settings: Any) -> bool:
        return _accepts(system, prompt, source_seconds, settings)

    prompt = usual_prompt(system)
    window = system.window_seconds
    source_seconds = 2 * window
    blend = (Part(text=PROMPT), Part(text="drums", weight=0.5))
    style = (Part(text=PROMPT), Part(audio=_silence(system, window)))
    return Features(
        prompt=prompt is not None,
        blend=prompt is not None and _accepts(system, blend, None, {}),
        style=prompt is not None and _accepts(system, style, None, {}),
        negative_prompt=accepts(negative_prompt="noise"),
        story=accepts(seconds=2 * window, story=(Scene(start=window, prompt="drums"),)),
        bpm=accepts(bpm=120.0),
        keys=tuple(key for key in _keys() if accepts(key=key)),
        metres=tuple(metre for metre in ControlVocabulary().metres if accepts(metre=metre)),
        steps=_steps(system, prompt, distilled),
        guidance_scales=tuple(scale for scale in GUIDANCE_SCALES if accepts(guidance_scale=scale)),
        longest_seconds=_longest(system, prompt),
        continuation=accepts(window, seconds=window + system.chunk_seconds),
        mend=accepts(source_seconds, regions=((0.25 * window, 0.5 * window),)),
        variation=accepts(source_seconds, strength=0.5),
        restyle=accepts(source_seconds, keep_tokens=True),
        melody=accepts(melody=_silence(system, window)),
    )


def usual_prompt(system: System) -> str | None:
    """`PROMPT`, or None for a system that follows no prompts."""
    return PROMPT if _accepts(system, PROMPT, None, {}) else None


def _accepts(system: System, prompt: Any, source_seconds: float | None, settings: dict[str, Any]) -> bool:
    """Whether a system can make a request, with a source of so many seconds if they are not None."""
    source = None if source_seconds is None else _silence(system, source_seconds)
    if source is not None and "tokenizer" not in system.configs:
        return False
    try:
        system.check(
            Request(prompt=prompt, source=source, **settings), None if source is None else len(source)
        )
    except UserError:
        return False
    return True


def _silence(system: System, seconds: float) -> np.ndarray:
    shape = (round(seconds * system.sample_rate), system.channels)
    return np.zeros(shape[:1] if system.channels == 1 else shape, np.float32)


def _keys() -> list[str]:
    return [f"{key} {mode}" for mode in ControlVocabulary().modes for key in KEYS]


def _steps(system: System, prompt: Any, distilled: bool) -> tuple[int, ...]:
    return tuple(
        steps
        for steps in (DISTILLED_STEPS if distilled else STEPS)
        if _accepts(system, prompt, None, {"steps": steps})
    )


def _longest(system: System, prompt: Any) -> float:
    """The longest clip, seconds: `LONGEST_SECONDS`, or one window for a system without chunks."""
    accepts = _accepts(system, prompt, None, {"seconds": LONGEST_SECONDS})
    return LONGEST_SECONDS if accepts else system.window_seconds
