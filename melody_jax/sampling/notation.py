"""The notation of prompts, stories and regions: text on the command line, JSON in prompt files and manifests.

    region   3-5                 [3, 5]                              seconds of a source
    scene    20=fast techno      {"at": 20, "prompt": "fast techno"}
    part     sad cello=0.5       {"text": "sad cello", "weight": 0.5} or {"audio": "rain.wav"}

A prompt file may use either form.
"""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

from melody_jax import files
from melody_jax.errors import UserError
from melody_jax.sampling.request import Part, PromptLike, Request, Scene, check_region
from melody_jax.sampling.settings import shorten


def parse_region(value: Any) -> tuple[float, float]:
    """(begin, end) in seconds from "3-5" or [3, 5]. Raises `UserError` for anything else."""
    region: tuple[Any, ...] = ()
    if isinstance(value, list):
        region = tuple(value)
    elif isinstance(value, str):
        begin, _, end = value.partition("-")
        with contextlib.suppress(ValueError):
            region = float(begin), float(end)
    if len(region) != 2:
        raise UserError(f"region {shorten(value)}: it must be BEGIN-END in seconds, such as 3-5")
    check_region(region)
    return region[0], region[1]


def parse_regions(value: Any) -> tuple[tuple[float, float], ...]:
    """The regions of a prompt file's line. Raises `UserError` unless they are a list of regions."""
    if not isinstance(value, list) or not all(isinstance(region, list | str) for region in value):
        raise UserError(f"regions are {shorten(value)}; they must be a list of [begin, end] in seconds")
    return tuple(parse_region(region) for region in value)


def parse_scene(value: Any, folder: Path = Path()) -> Scene:
    """A scene from "20=fast techno" or {"at": 20, "prompt": ...}. Raises `UserError` for anything else."""
    if isinstance(value, dict) and value.keys() == {"at", "prompt"}:
        return Scene(start=value["at"], prompt=parse_prompt(value["prompt"], folder))
    if isinstance(value, str):
        seconds, _, prompt = value.partition("=")
        message = f"story {shorten(value)}: it must be SECONDS=PROMPT"
        return Scene(start=_number(seconds, message), prompt=prompt)
    raise UserError(f"story is {shorten(value)}; it must be a list of objects that have at and prompt")


def parse_story(value: Any, folder: Path) -> tuple[Scene, ...]:
    """The story of a prompt file; sound files are relative to `folder`. Raises as `parse_scene`."""
    if not isinstance(value, list):
        raise UserError(f"story is {shorten(value)}; it must be a list of objects that have at and prompt")
    return tuple(parse_scene(scene, folder) for scene in value)


def parse_part(value: Any, folder: Path = Path()) -> Part:
    """A part of a blend from "sad cello=0.5" or {"text" or "audio", "weight"}; `UserError` for anything
    else."""
    if isinstance(value, str):
        text, _, weight = value.rpartition("=")
        return Part(text=text, weight=_number(weight, f"blend {shorten(value)}: it must be PROMPT=WEIGHT"))
    if not isinstance(value, dict):
        raise UserError(f"prompt has the part {shorten(value)}; it must be a list of objects")
    names = {field.name for field in dataclasses.fields(Part)}
    if unknown := value.keys() - names:
        raise UserError(f"a prompt's part has {shorten(unknown.pop())}; it has {', '.join(sorted(names))}")
    fields: dict[str, Any] = dict(value)
    fields["audio"] = parse_sound(fields.get("audio"), folder, "audio")
    return Part(**fields)


def parse_sound(value: Any, folder: Path, name: str) -> Path | None:
    """A sound file from its path relative to `folder`; null is none. Raises `UserError` for anything else."""
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise UserError(f"{name} is {shorten(value)}; it must be the name of a sound file")
    return folder / value


def parse_prompt(value: Any, folder: Path) -> PromptLike:
    """The prompt in a line of a prompt file: a text, or a list of parts whose sound files are relative to `folder`.

    Raises `UserError` for anything else.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise UserError(f"prompt is {shorten(value)}; it must be a text or a list of objects")
    return tuple(parse_part(part, folder) for part in value)


def blend(text: str, parts: tuple[str, ...], audio: Path | None, audio_weight: float) -> PromptLike:
    """The prompt given on the command line: its text, blended with a sound and further texts, if any."""
    if not parts and audio is None:
        return text
    texts = [Part(text=text)] if text.strip() else []
    sounds = [Part(audio=audio, weight=audio_weight)] if audio is not None else []
    return (*texts, *sounds, *(parse_part(part) for part in parts))


def request_to_json(request: Request) -> dict[str, Any]:
    """A request as JSON values, in the notation of a prompt file; sound files are replaced by their names and hashes.

    Raises `UserError` for a sound file that cannot be read.
    """
    return _to_json(request)


def _to_json(value: Any) -> Any:
    if isinstance(value, Scene):
        return {"at": value.start, "prompt": _to_json(value.prompt)}
    if dataclasses.is_dataclass(value):
        return {field.name: _to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return {"file": value.name, "sha256": _file_hash(value)}
    if isinstance(value, list | tuple):
        return [_to_json(element) for element in value]
    return value


@functools.lru_cache(maxsize=1024)
def _file_hash(path: Path) -> str:
    return files.file_hash(path)


def _number(text: str, message: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(message) from None
