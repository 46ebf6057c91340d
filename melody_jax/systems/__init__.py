"""Systems that make music: MeLoDy (`sampling/cascade.py`), and others on what it shares with them.

A system is a module with `load(name, folder=...)`, which returns a `System` (`sampling/system.py`); `SYSTEMS` names it.
"""

import importlib
from pathlib import Path
from typing import Any

from melody_jax import release_source
from melody_jax.errors import UserError

SYSTEMS = {
    "melody": "melody_jax.sampling.cascade",
    "musiclm": "melody_jax.systems.musiclm",
    "audiolm": "melody_jax.systems.audiolm",
    "noise2music": "melody_jax.systems.noise2music",
    "mousai": "melody_jax.systems.mousai",
}
"""Name of a system -> its module."""


def load(
    name: str = "mini", *, system: str = "melody", folder: str | Path | None = None, **options: Any
) -> Any:
    """The release `name` as a system: a packaged one, that in `folder/name`, or "owner/name" on the Hugging Face Hub.

    "owner/name@revision" is that of a branch, a tag or a commit; nothing is downloaded for a name without a slash.

    options: those of the system's own `load`, such as networks and distilled of `sampling.cascade.load`.

    Raises `UserError` for an unknown system, and as its `load` does.
    """
    if system not in SYSTEMS:
        raise UserError(f"system {system!r}; it must be one of {', '.join(SYSTEMS)}")
    if system != "melody" and options:
        raise UserError(f"{next(iter(options))}: {system} has no such option of loading")
    name, folder = release_source.local_name(name, folder)
    return importlib.import_module(SYSTEMS[system]).load(name, folder=folder, **options)
