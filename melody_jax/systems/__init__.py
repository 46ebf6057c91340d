"""Systems that make music: MeLoDy (`sampling/cascade.py`), and others on what it shares with them.

A system is a module with `load(name, folder=...)`, which returns a `System` (`sampling/system.py`); `SYSTEMS` names it.
"""

import importlib
from pathlib import Path
from typing import Any

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
    """The release `name` as a system, from the package or from `folder/name`; nothing is downloaded.

    options: those of the system's own `load`, such as networks and distilled of `sampling.cascade.load`.

    Raises `UserError` for an unknown system, and as its `load` does.
    """
    if system not in SYSTEMS:
        raise UserError(f"system {system!r}; it must be one of {', '.join(SYSTEMS)}")
    if system != "melody" and options:
        raise UserError(f"{next(iter(options))}: {system} has no such option of loading")
    return importlib.import_module(SYSTEMS[system]).load(name, folder=folder, **options)
