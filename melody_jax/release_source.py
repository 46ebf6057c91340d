"""Brings releases to this machine: from the Hugging Face Hub (`hub.py`), or from a folder of a bucket.

A release in a bucket is copied once, together with the releases beside it that it is based on. When one of its
descriptions changes, it is copied anew.
"""

import hashlib
import shutil
from pathlib import Path

from melody_jax import files, hub, release, release_folder
from melody_jax.errors import UserError
from melody_jax.object_store import RemoteFolder, cache_folder, is_remote


def local_name(name: str, folder: str | Path | None) -> tuple[str, str | Path | None]:
    """`name` and `folder` of a release on this machine: as given, or those of the copy.

    Raises `UserError` as `hub.fetch` and `copy_from_bucket` do.
    """
    if folder is not None and is_remote(folder):
        copy = copy_from_bucket(f"{folder}/{name}")
        return copy.name, copy.parent
    on_hub = hub.hub_name(name, folder)
    if on_hub is None:
        return name, folder
    snapshot = hub.fetch(on_hub)
    return snapshot.name, snapshot.parent


def local_folder(path: str) -> str:
    """The folder of released networks that `path` means: itself, or its copy for hf://owner/name and for buckets.

    Raises `UserError` as `hub.fetch` and `copy_from_bucket` do.
    """
    if is_remote(path):
        return str(copy_from_bucket(path))
    on_hub = hub.hub_name(path) if path.startswith(hub.SCHEME) else None
    return path if on_hub is None else str(hub.fetch(on_hub))


def copy_from_bucket(path: str) -> Path:
    """A folder on this machine with the release in a bucket; the releases that it is based on are beside it.

    Raises:
        UserError: there is no release, it is too large, incomplete or damaged, or the store cannot be read.
    """
    remote = RemoteFolder(path)
    place, _, name = remote.url.rpartition("/")
    parent = RemoteFolder(place)
    sizes = _sizes(parent, name)
    if not sizes:
        raise UserError(f"{remote.url}: no release, there are no objects such as lm.json")
    for base in _bases(parent, name) if f"{name}/{release_folder.BASES}" in sizes else []:
        sizes |= _sizes(parent, base)
    described = [(file, sizes[file], _description(parent, file)) for file in sorted(sizes)]
    key = hashlib.sha256(repr(described).encode()).hexdigest()
    root = cache_folder("releases", f"{remote.url} {key}")
    with files.claim_folder(root, ".lock", wait=True):
        parent.download({file: size for file, size in sizes.items() if not (root / file).is_file()}, root)
        for copied in {file.partition("/")[0] for file in sizes}:
            _check(root / copied, f"{place}/{copied}")
    return root / name


def _sizes(parent: RemoteFolder, name: str) -> dict[str, int]:
    """Object -> bytes of the files of a release in a folder; those of other names are left out."""
    listed = (parent / name).sizes()
    sizes = {file: listed[file] for file in hub.release_files() if file in listed}
    hub.check_sizes(sizes, f"{parent.url}/{name}")
    return {f"{name}/{file}": size for file, size in sizes.items()}


def _bases(parent: RemoteFolder, name: str) -> list[str]:
    """The bases of a release. Those that are not beside it are packaged."""
    file = f"{name}/{release_folder.BASES}"
    place = f"{parent.url}/{file}"
    text = parent.read(file, release.MAX_DESCRIPTION).decode("utf-8", "replace")
    return release_folder.check_base_names(files.parse_json(text, place), place)


def _description(parent: RemoteFolder, file: str) -> bytes:
    """The content of an object that describes a network, and with it the sha256 of its tensors; else nothing."""
    is_description = file.endswith(".json") and not file.endswith(release.TOKENIZER)
    return parent.read(file, release.MAX_DESCRIPTION) if is_description else b""


def _check(folder: Path, place: str) -> None:
    """Raises `UserError` unless a copy is complete; what is damaged does not stay."""
    try:
        hub.check_files(folder)
    except UserError as error:
        shutil.rmtree(folder)
        raise UserError(f"{place}: damaged, incomplete or no release ({error})") from error
