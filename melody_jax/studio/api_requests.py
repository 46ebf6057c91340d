"""The body of POST /api/jobs: the settings of a line of a prompt file, and what else a job has.

    {"prompt": "bossa nova", "seconds": 20, "count": 4}
    {"from_take": "0123456789abcdef", "source": {"take": "0123456789abcdef"}, "strength": 0.5}

Sounds are {"take": ID} or {"upload": NAME}, never paths. With `from_take`, the settings are changes to those of a take.
"""

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melody_jax.errors import UserError
from melody_jax.options import descriptions
from melody_jax.sampling import notation
from melody_jax.sampling.request import SOUNDS, PromptLike, Request, has_changes, make_requests
from melody_jax.sampling.settings import DRAWN_SEED, draw_seed, shorten
from melody_jax.studio.project import Project
from melody_jax.studio.takes import TITLE_LENGTH

MAX_COUNT = 4
"""Takes that one body may ask for."""
SETTINGS = tuple(field.name for field in dataclasses.fields(Request))
OTHERS = ("count", "title", "parent", "from_take")
SYNONYMS = {
    "length": "seconds",
    "duration": "seconds",
    "text": "prompt",
    "n": "count",
    "cfg": "guidance_scale",
}
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


@dataclass(frozen=True, kw_only=True, eq=False)
class JobBody:
    """What a body asks for."""

    requests: list[Request]
    """One for each take, with consecutive seeds."""
    parent: str | None
    """The take that they come from."""
    title: str
    """Of the takes; empty: their prompts."""


def parse_body(body: Any, project: Project) -> JobBody:
    """The requests of a body. Reads takes whose sounds are used.

    Raises:
        UserError: one line, for a setting that there is not, and for a value that it cannot have.
        UnknownTake: there is no such take, or no such upload.
    """
    if not isinstance(body, dict):
        raise UserError('the body must be an object of settings, such as {"prompt": "slow sad cello"}')
    _check_names(body)
    count = body.get("count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_COUNT:
        raise UserError(f"count is {shorten(count)}; it must be a whole number from 1 to {MAX_COUNT}")
    title = body.get("title", "")
    if not isinstance(title, str):
        raise UserError(f"title is {shorten(title)}; it must be a text")
    base = _take_id(body, "from_take")
    parent = _take_id(body, "parent") or base or _parent_of(body.get("source"))
    given = {name: value for name, value in body.items() if name in SETTINGS}
    settings = parse_settings(given, project, has_base=base is not None)
    if base is not None:
        request = project.request(base)
        settings = {name: getattr(request, name) for name in SETTINGS} | settings
        if "seconds" not in given and _changes_source(settings):
            settings["seconds"] = Request.seconds
    settings["seed"] = _seed(settings.get("seed", DRAWN_SEED))
    prompt = settings.pop("prompt", "" if settings.get("source") is not None else None)
    requests = make_requests([prompt] * count, {"seconds": Request.seconds} | settings)
    return JobBody(requests=requests, parent=parent, title=title)


def parse_settings(given: dict[str, Any], project: Project, has_base: bool = False) -> dict[str, Any]:
    """The settings of JSON values, as fields of `Request`; a null is the default if they are changes to a take's.

    Raises as `parse_body`.
    """
    settings: dict[str, Any] = {}
    folder = project.sources_folder
    for name, value in given.items():
        if value is None and has_base and name != "seed":
            settings[name] = getattr(Request, name)
        elif name == "prompt":
            settings[name] = _prompt(value, project)
        elif name == "story":
            scenes = [_scene(scene, project) for scene in value] if isinstance(value, list) else value
            settings[name] = notation.parse_story(scenes, folder)
        elif name == "regions":
            settings[name] = notation.parse_regions(value)
        elif name in SOUNDS:
            settings[name] = _sound(value, name, project)
        elif isinstance(value, list | dict):
            raise UserError(f"{name} is {shorten(value)}; it must be a single value")
        else:
            settings[name] = value
    return settings


def body_schema() -> dict[str, Any]:
    """The JSON schema of a body, from the fields of `Request` with their ranges and descriptions."""
    texts = descriptions(Request)
    reference = {"oneOf": [_object(take="string"), _object(upload="string")]}
    part = _object(text="string", audio=reference, weight="number")
    prompt = {
        "oneOf": [{"type": "string"}, {"type": "array", "items": {"oneOf": [part, {"type": "string"}]}}]
    }
    region = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    special: dict[str, Any] = {
        "prompt": prompt,
        "story": {"type": "array", "items": _object(at="number", prompt=prompt)},
        "regions": {"type": "array", "items": region},
    } | dict.fromkeys(SOUNDS, reference)
    properties = {
        field.name: special.get(field.name, _property(field)) | {"description": texts.get(field.name, "")}
        for field in dataclasses.fields(Request)
    }
    properties["seed"]["description"] += (
        " Without one, or with null, it is drawn; a text of digits is allowed."
    )
    properties |= {
        "count": {"type": "integer", "minimum": 1, "maximum": MAX_COUNT, "default": 1}
        | {"description": "Takes to make, with consecutive seeds."},
        "title": {"type": "string", "description": f"Of the takes, at most {TITLE_LENGTH} characters."},
        "parent": {"type": "string", "description": "The take that they come from, for the history."},
        "from_take": {"type": "string", "description": "A take, whose settings the others change."},
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _check_names(body: dict[str, Any]) -> None:
    """Raises `UserError` for the first name that no setting has, with the closest one."""
    names = (*SETTINGS, *OTHERS)
    for name in body:
        if name not in names:
            close = [SYNONYMS[name]] if name in SYNONYMS else difflib.get_close_matches(name, names, 1, 0.5)
            hint = f"is {close[0]!r} meant?" if close else f"the settings are {', '.join(sorted(names))}"
            raise UserError(f"unknown setting {shorten(name)}; {hint}")


def _take_id(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{name} is {shorten(value)}; it must be the id of a take")
    return value


def _parent_of(source: Any) -> str | None:
    value = source.get("take") if isinstance(source, dict) else None
    return value if isinstance(value, str) else None


def _changes_source(settings: dict[str, Any]) -> bool:
    """Whether a clip of these settings is as long as its source."""
    return settings.get("source") is not None and has_changes(settings)


def _seed(value: Any) -> Any:
    """A seed of JSON: a number, a text of digits, or one that is drawn."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        return int(value)
    is_drawn = value is None or (value == DRAWN_SEED and not isinstance(value, bool))
    return draw_seed() if is_drawn else value


def _prompt(value: Any, project: Project) -> PromptLike | None:
    if value is None:
        return None
    return notation.parse_prompt(_with_names(value, project), project.sources_folder)


def _scene(value: Any, project: Project) -> Any:
    """A scene in whose prompt the sounds are names."""
    if isinstance(value, dict) and "prompt" in value:
        return value | {"prompt": _with_names(value["prompt"], project)}
    return value


def _with_names(prompt: Any, project: Project) -> Any:
    """A prompt of JSON in which each sound of a part is the name of a source."""
    if not isinstance(prompt, list):
        return prompt
    parts = []
    for part in prompt:
        if isinstance(part, dict) and part.get("audio") is not None:
            sound = _sound(part["audio"], "audio", project)
            parts.append(part | {"audio": sound.name if sound else None})
        else:
            parts.append(part)
    return parts


def _sound(value: Any, name: str, project: Project) -> Path | None:
    """The source of {"take": ID} or {"upload": NAME}; null is none."""
    if value is None:
        return None
    if isinstance(value, dict) and len(value) == 1:
        ((kind, reference),) = value.items()
        if kind == "take" and isinstance(reference, str):
            return project.take_as_source(reference)
        if kind == "upload" and isinstance(reference, str):
            return project.source(reference)
    raise UserError(f'{name} is {shorten(value)}; it must be {{"take": ID}} or {{"upload": NAME}}')


def _property(field: dataclasses.Field) -> dict[str, Any]:
    """The schema of a setting with one value."""
    names = {"least": "minimum", "above": "exclusiveMinimum", "most": "maximum", "choices": "enum"}
    limits = {name: field.metadata[key] for key, name in names.items() if key in field.metadata}
    kind = _TYPES[field.type] if isinstance(field.type, type) else "string"
    return {"type": kind, "default": field.default} | limits


def _object(**properties: Any) -> dict[str, Any]:
    """The schema of an object; the type of a property may be given alone."""
    schemas = {
        name: {"type": schema} if isinstance(schema, str) else schema for name, schema in properties.items()
    }
    return {"type": "object", "properties": schemas, "additionalProperties": False}
