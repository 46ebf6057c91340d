"""Takes: the clips of a project, each with all that made it, as JSON values and back as requests.

A take's `settings` are its request in the notation of a prompt file (sampling/notation.py), where a sound is
{"file": name in the project's folder `sources`, "sha256": hash}.
"""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melody_jax.errors import UserError
from melody_jax.sampling import notation
from melody_jax.sampling.request import SOUNDS, Request, prompt_parts
from melody_jax.sampling.settings import shorten

TAKE_ID = re.compile(r"[0-9a-f]{16}")
TAKE_FILE = re.compile(r"[0-9a-f]{16}\.(flac|wav)")
SOURCE_FILE = re.compile(r"[0-9a-f]{64}\.(flac|wav)")
TITLE_LENGTH = 200
"""Longest title, characters."""
KINDS = ("prompt", "continuation", "mend", "variation", "restyle")
"""What a take is: of a prompt alone; a source continued, with new regions, varied by strength, or with another prompt
over its semantic tokens."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """The networks that a studio plays, as `melody sample` names them."""

    name: str
    """Of the release, `--model`."""
    system: str = "melody"
    """`--system`."""
    distilled: bool = False
    """`--distilled`."""


@dataclass(frozen=True, kw_only=True)
class Take:
    """One clip of a project. All fields are JSON values."""

    id: str
    """16 hexadecimal digits."""
    parent: str | None
    """The take that it came from, which may have been deleted since; None: from nothing."""
    kind: str
    """One of `KINDS`."""
    title: str
    settings: dict[str, Any]
    """The request (see the module). `seed` can exceed 2**53, the largest whole number of JavaScript."""
    release: str
    system: str
    distilled: bool
    """`Release`."""
    model_hash: str
    """`System.hash`."""
    similarity: float | None
    """Cosine with the prompt in MuLan's space, -1 to 1; None without a prompt."""
    seconds: float
    """Length, seconds."""
    sample_rate: int
    channels: int
    seconds_taken: float
    """Seconds that it took to make."""
    created: float
    """Seconds since 1970; later takes of a project have larger ones."""
    file: str
    """Name of its sound file, ID.flac or ID.wav."""
    bytes: int
    sha256: str
    """Size and hash of the sound file, which `melody sample` writes again with the same settings."""
    favourite: bool = False

    @property
    def networks(self) -> Release:
        """The networks that made it."""
        return Release(name=self.release, system=self.system, distilled=self.distilled)


def parse_take(value: Any) -> Take:
    """A take from the value of its JSON file. Raises `UserError` for a field that is missing or of another type."""
    hints = {field.name: field for field in dataclasses.fields(Take)}
    if not isinstance(value, dict) or value.keys() != hints.keys():
        raise UserError("not the settings of a take")
    take = Take(**value)
    texts = ("id", "kind", "title", "release", "system", "model_hash", "file", "sha256")
    numbers = ("seconds", "sample_rate", "channels", "seconds_taken", "created", "bytes")
    flags = ("distilled", "favourite")
    right = (
        all(isinstance(getattr(take, name), str) for name in texts)
        and all(_is_number(getattr(take, name)) for name in numbers)
        and all(isinstance(getattr(take, name), bool) for name in flags)
        and (take.similarity is None or _is_number(take.similarity))
        and (take.parent is None or isinstance(take.parent, str))
        and isinstance(take.settings, dict)
        and take.kind in KINDS
        and TAKE_ID.fullmatch(take.id)
        and TAKE_FILE.fullmatch(take.file)
        and take.file.startswith(take.id)
    )
    if not right:
        raise UserError("not the settings of a take")
    return take


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def kind_of(request: Request) -> str:
    """What a take of the request is, one of `KINDS`."""
    if request.source is None:
        return "prompt"
    if request.regions:
        return "mend"
    if request.keep_tokens:
        return "restyle"
    return "variation" if request.strength < 1 else "continuation"


def sounds_of(request: Request) -> list[Any]:
    """The sounds of a request, paths or samples: its source, its melody, and those of its prompts."""
    prompts = [request.prompt or "", *(scene.prompt for scene in request.story)]
    parts = [part.audio for prompt in prompts if not isinstance(prompt, str) for part in prompt]
    return [sound for sound in (request.source, request.melody, *parts) if sound is not None]


def title_of(request: Request) -> str:
    """A title for a take of the request: its texts, or its kind without any."""
    texts = [
        " + ".join(part.text for part in prompt_parts(prompt) if part.text) for _, prompt in request.scenes
    ]
    return shorten_title(", then ".join(text for text in texts if text) or kind_of(request))


def shorten_title(title: str) -> str:
    """A title on one line, of at most `TITLE_LENGTH` characters."""
    line = " ".join(title.split())
    return line if len(line) <= TITLE_LENGTH else f"{line[: TITLE_LENGTH - 1]}…"


def request_of(settings: dict[str, Any], sources: Path) -> Request:
    """The request of a take; `sources` is the folder of its sound files.

    Raises `UserError` for settings that this version does not have, and for a sound outside of the folder.
    """
    values: dict[str, Any] = {}
    values |= {name: value for name, value in replace_sounds(settings, "").items() if value is not None}
    fields = {field.name for field in dataclasses.fields(Request)}
    if unknown := values.keys() - fields:
        raise UserError(
            f"the take has the setting {shorten(unknown.pop())}, which this version does not have"
        )
    for name in SOUNDS:
        if name in values:
            values[name] = notation.parse_sound(values[name], sources, name)
    values["story"] = notation.parse_story(values.get("story", []), sources)
    values["regions"] = notation.parse_regions(values.get("regions", []))
    values["prompt"] = notation.parse_prompt(values["prompt"], sources) if "prompt" in values else None
    return Request(**values)


def prompt_line(take: Take, prefix: str) -> dict[str, Any]:
    """The line of a prompt file that makes a take: its id, its seed, and the settings that are not the defaults.

    prefix: what comes before the names of its sources, such as "sources/".
    """
    settings = replace_sounds(take.settings, prefix)
    defaults = {field.name: field.default for field in dataclasses.fields(Request)}
    empty = ((), [], None)
    changed = {
        name: value
        for name, value in settings.items()
        if value != defaults.get(name) and not (value in empty and defaults.get(name) in empty)
    }
    return {"id": take.id} | changed | {"seed": settings["seed"]}


def replace_sounds(value: Any, prefix: str) -> Any:
    """JSON values in which each sound, {"file", "sha256"}, is its name behind a prefix.

    Raises `UserError` for a name that is none of a project's sources.
    """
    if isinstance(value, dict):
        if value.keys() == {"file", "sha256"}:
            return prefix + _checked_name(value["file"])
        return {name: replace_sounds(inner, prefix) for name, inner in value.items()}
    return [replace_sounds(inner, prefix) for inner in value] if isinstance(value, list) else value


def source_names(value: Any) -> Iterator[str]:
    """The names of the sound files in the settings of a take. Raises `UserError` as `replace_sounds`."""
    if isinstance(value, dict):
        if value.keys() == {"file", "sha256"}:
            yield _checked_name(value["file"])
            return
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from source_names(inner)


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not SOURCE_FILE.fullmatch(name):
        raise UserError(f"{shorten(name)} is not the name of a source of the project")
    return name
