"""Locates the files of released networks: in the folder of the release, or in that of one of its bases.

A release that shares networks with other releases (its bases) holds only its own networks. It lists the bases in
`bases.json`, for example ["musiclm", "mini"]. A base is a folder next to the release or, if there is none, a packaged
release. A missing network is taken from the first base that has it; bases of bases are not searched.
"""

import os
import re
from pathlib import Path
from typing import Any

from melody_jax import files
from melody_jax.errors import UserError

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the releases that ship with the package."""
BASES = "bases.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Names of releases: no paths."""
_MAX_BYTES = 1 << 16


def root(folder: str | os.PathLike | None) -> Path:
    """The folder that holds releases: `folder`, or for None that of the packaged ones."""
    return WEIGHTS if folder is None else Path(folder)


def locate(path: str | os.PathLike) -> Path:
    """A folder of released networks: the one at `path`, or the packaged release of this name ("mini")."""
    packaged = WEIGHTS / Path(path).name
    is_name = Path(path).name == str(path)
    return packaged if is_name and not Path(path).exists() and packaged.is_dir() else Path(path)


def network_folder(path: str | os.PathLike, network: str) -> Path:
    """The folder that holds the files of a network of the release at `path`: its own, or that of a base.

    If neither has the network, the folder of the release itself, so that error messages name that folder. Raises
    `UserError` if `bases.json` is not a list of names, or if it names a release that does not exist.
    """
    folder = locate(path)
    if (folder / f"{network}.json").is_file():
        return folder
    return next((base for base in _bases(folder) if (base / f"{network}.json").is_file()), folder)


def has_network(path: str | os.PathLike, network: str) -> bool:
    """Whether the release at `path`, or a base of it, has the network. Raises `UserError` as `network_folder` does."""
    return (network_folder(path, network) / f"{network}.json").is_file()


def base_names(folder: Path) -> list[str]:
    """The names of the releases that the one in `folder` is based on. Raises `UserError` unless they are names."""
    file = folder / BASES
    if not file.exists():
        return []
    return check_base_names(files.read_json(file, _MAX_BYTES), str(file))


def check_base_names(names: Any, place: str) -> list[str]:
    """The content of a `bases.json`, of which `place` is the path. Raises `UserError` unless it is a list of names."""
    if not isinstance(names, list) or not all(isinstance(n, str) and _NAME.fullmatch(n) for n in names):
        raise UserError(f'{place}: must be a list of names of releases, such as ["mini"]')
    return names


def _bases(folder: Path) -> list[Path]:
    """The folders of the releases that the one in `folder` is based on."""
    file = folder / BASES
    names = base_names(folder)
    parent = Path(os.path.abspath(folder)).parent  # of "." too
    candidates = [(parent / name, WEIGHTS / name) for name in names]
    for beside, packaged in candidates:
        if not beside.is_dir() and not packaged.is_dir():
            raise UserError(
                f"{file}: names the release {beside.name!r}, which is neither {beside} nor packaged"
            )
    return [beside if beside.is_dir() else packaged for beside, packaged in candidates]
