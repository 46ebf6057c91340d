"""Systems that make music: MeLoDy (`sampling/cascade.py`), and others on what it shares with them.

A system is a module with `load(name, folder=...)`, which returns a `System` (`sampling/system.py`); `SYSTEMS` names it.
"""

import importlib
from pathlib import Path
from typing import Any

from melody_jax import release
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
    path = release.root(folder) / name
    kind = _kind(path)
    if system == "melody" and kind not in (None, "melody") and "dpd" in options.get("networks", ("dpd",)):
        raise UserError(
            f"{path} has no dpd but the networks of {kind}; load it with --system {kind}, in Python with "
            f"system={kind!r}"
        )
    return importlib.import_module(SYSTEMS[system]).load(name, folder=folder, **options)


def _kind(path: Path) -> str | None:
    """The system whose networks a release has, if one can tell."""
    signs = {
        "melody": {"dpd"},
        "noise2music": {"upsampler"},
        "mousai": {"dmae"},
        "musiclm": {"coarse", "mulan"},
        "audiolm": {"coarse"},
    }
    for kind, networks in signs.items():
        if all((path / f"{name}.json").is_file() for name in networks):
            return kind
    return None
