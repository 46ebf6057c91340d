"""Prompt files: one JSON object per line, each of which becomes one clip.

A line has a "prompt", unless the system has none. It may have an "id", which becomes the name of the clip's file, and
any field of `Request` (`notation.py` describes blends, stories and regions). Sound files are relative to the folder of
the prompt file; a prompt file in a bucket has none.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melody_jax import files, object_store
from melody_jax.errors import UserError
from melody_jax.sampling import notation
from melody_jax.sampling.request import LANGUAGE_MODEL_SETTINGS, SOUNDS, Request, has_changes, make_requests
from melody_jax.sampling.settings import DRAWN_SEED, draw_seed, shorten

CLIP_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
"""A valid id: as a file name it can neither leave the folder nor be hidden."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptLine:
    """One line of a prompt file."""

    number: int
    """Line number, from 1."""
    clip_id: str
    """The clip's id, unique in the file."""
    request: Request
    """The clip."""
    settings: dict[str, Any]
    """The request as JSON values. A clip that was made with equal settings need not be made again."""
    draws_seed: bool = False
    """Whether the seed was drawn now, so that a clip with another one is as good."""
    unused: frozenset[str] = frozenset()
    """Settings whose default has no effect on this clip."""


def read_prompt_file(path: Path, defaults: dict[str, Any]) -> list[PromptLine]:
    """The lines of a prompt file in order; empty lines do not count.

    Settings that a line lacks are taken from `defaults`, if they have an effect on its clip. Without a seed, it has the
    default seed plus its position (from 0); without an id, its id is the position. The seed null or -1 is drawn.

    Raises:
        UserError: the file cannot be read or has no prompts, lines are bad (the error describes the first one and
            counts the others), or a default has no effect on any of them.
    """
    lines = files.split_lines(object_store.read_text(path))
    parsed: dict[str, PromptLine] = {}
    errors: list[str] = []
    numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
    for place, number in enumerate(numbers):
        try:
            value = files.parse_json(lines[number - 1], f"line {number}")
        except UserError as error:
            errors.append(str(error))
            continue
        try:
            line = _parse_line(value, number, place, defaults, path.parent)
            if parsed.setdefault(line.clip_id.casefold(), line) is not line:
                raise UserError(f"id {line.clip_id!r} is already used by an earlier line")
        except UserError as error:
            errors.append(f"line {number}: {error}")
    raise_line_errors(errors, path)
    if not parsed:
        raise UserError(f'{path}: no prompts; a line is like {{"prompt": "slow sad cello"}}')
    _check_defaults(parsed.values(), defaults, path)
    return list(parsed.values())


def raise_line_errors(errors: list[str], path: Path) -> None:
    """Raises `UserError` with the first error and the number of the others, if there are any."""
    if errors:
        others = f" (and {len(errors) - 1} more bad lines)" if len(errors) > 1 else ""
        raise UserError(f"{path}, {errors[0]}{others}")


def _parse_line(line: Any, number: int, place: int, defaults: dict[str, Any], folder: Path) -> PromptLine:
    if not isinstance(line, dict):
        raise UserError('a line must be an object with a "prompt"')
    settings = {name: value for name, value in line.items() if name not in ("id", "prompt")}
    for name, value in settings.items():
        if isinstance(value, list | dict) and name not in ("story", "regions"):
            raise UserError(f"{name} is {shorten(value)}; it must be a single value")
    if "story" in settings:
        settings["story"] = notation.parse_story(settings["story"], folder)
    if "regions" in settings:
        settings["regions"] = notation.parse_regions(settings["regions"])
    for name in SOUNDS:
        if name in settings:
            settings[name] = notation.parse_sound(settings[name], folder, name)
    clip_id = line.get("id", f"{place:06d}")
    if isinstance(clip_id, int) and not isinstance(clip_id, bool):
        clip_id = str(clip_id)
    if not isinstance(clip_id, str) or not CLIP_ID.fullmatch(clip_id):
        raise UserError(
            f"id {shorten(clip_id)} is not a valid file name; it must be 1 to 100 of A-Z a-z 0-9 . _ - and not begin "
            "with a ."
        )
    prompt = line.get("prompt", "" if settings.get("source") else None)
    if prompt is not None:
        prompt = notation.parse_prompt(prompt, folder)
    seed = settings.get("seed", defaults.get("seed", 0))
    draws_seed = seed is None or (seed == DRAWN_SEED and not isinstance(seed, bool))
    if seed is None or draws_seed:
        settings["seed"] = draw_seed()
    elif "seed" not in settings:
        settings["seed"] = seed + place
    unused = _unused_defaults(defaults | settings)
    used = {name: value for name, value in defaults.items() if name not in unused}
    (request,) = make_requests([prompt], {"seconds": Request.seconds} | used | settings)
    return PromptLine(
        number=number,
        clip_id=clip_id,
        request=request,
        settings=notation.request_to_json(request),
        draws_seed=draws_seed,
        unused=unused,
    )


def _unused_defaults(settings: dict[str, Any]) -> frozenset[str]:
    """The settings of a line that, if they are defaults, have no effect on it; a line's own are refused."""
    unused: list[str] = []
    if not settings.get("key") and not settings.get("metre"):
        unused.append("control_scale")
    if settings.get("keep_tokens"):
        unused += LANGUAGE_MODEL_SETTINGS
    if settings.get("source") is not None and has_changes(settings):
        unused.append("seconds")
    return frozenset(unused)


def _check_defaults(lines: Collection[PromptLine], defaults: dict[str, Any], path: Path) -> None:
    """Raises `UserError` for a default that is given but has no effect on any line."""
    for name in sorted(frozenset.intersection(*(line.unused for line in lines))):
        value = defaults.get(name, getattr(Request, name))
        if value != getattr(Request, name):
            raise UserError(f"{name} is {shorten(value)}, but no line of {path} uses it; leave it out")
