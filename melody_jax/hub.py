"""Releases on the Hugging Face Hub: `load("owner/name")`, `--model owner/name@revision`, `--networks hf://owner/name`.

A release is a snapshot of one commit in the cache of the hub's library (`HF_HOME`). Only files with the names of a
release are fetched, none of them executable; every file of tensors is compared with the sha256 in its JSON before
anything is loaded. A branch or tag is resolved at each load; without a network, to the commit of the last complete one.

`owner/name` means the hub only where no folder of releases is given; `hf://owner/name` means it everywhere. A name
without a slash never does.
"""

import contextlib
import os
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from melody_jax import files, folders, release, release_folder
from melody_jax.errors import InputWarning, UserError, first_line
from melody_jax.extras import install_hint

SCHEME = "hf://"
TEXTS = ("README.md", "ATTRIBUTION.md", "LICENSE")
"""Files of a release that no network needs."""
MAX_BYTES = {".safetensors": release.MAX_BYTES, ".json": release.MAX_DESCRIPTION, ".md": 1 << 24, "": 1 << 20}
"""Suffix of a file -> size of the largest one that is fetched."""
MAX_TOKENIZER = 1 << 26
MAX_TOTAL = release.MAX_BYTES
"""Largest sum of the sizes of a release's files."""
TIMEOUT = 10.0
"""Seconds after which a hub that does not answer counts as unreachable."""
NAME = re.compile(
    rf"(?:{SCHEME})?([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@([A-Za-z0-9](?:[\w.-]|/(?=\w))*))?", re.ASCII
)
"""Repository and revision of a release on the hub."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubName(NamedTuple):
    """A release on the hub."""

    repo: str
    """As in "owner/name"."""
    revision: str
    """A branch, a tag or a commit hash; empty: the default branch."""

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def hub_name(name: str | os.PathLike, folder: str | os.PathLike | None = None) -> HubName | None:
    """The release on the hub that `name` means; None if it means a release in `folder`, or for None a packaged one.

    Raises:
        UserError: "hf://" is followed by something else than owner/name or owner/name@revision, or "owner/name" is a
            folder here as well.
    """
    text = os.fspath(name)
    is_explicit = text.startswith(SCHEME)
    if not is_explicit and (
        folder is not None or "/" not in text or (release_folder.WEIGHTS / text).is_dir()
    ):
        return None
    match = NAME.fullmatch(text)
    if match is None:
        if is_explicit:
            raise UserError(f"{text}: a release on the hub is hf://owner/name or hf://owner/name@revision")
        return None
    if not is_explicit and folders.is_folder(text):
        owner, _, last = text.rpartition("/")
        raise UserError(
            f"{text} is a folder here, and may be a name on the hub: for the folder, give --folder {owner} and the "
            f"name {last}; for the hub, {SCHEME}{text}"
        )
    return HubName(match[1], match[2] or "")


def pin(name: str, folder: str | Path | None = None) -> str:
    """`name` with the commit hash as its revision ("hf://owner/name@..."), if it means the hub; otherwise itself.

    For programs that load a release several times, or record its name. Raises `UserError` as `fetch` does.
    """
    hub = hub_name(name, folder)
    return name if hub is None else f"{SCHEME}{hub.repo}@{fetch(hub).name}"


def fetch(hub: HubName) -> Path:
    """The folder of a release's snapshot, fetched unless it is complete in the cache; named by the commit hash.

    Raises:
        UserError: there is no such repository or revision, or no access to it; the hub cannot be reached and the
            release is not in the cache; it is too large, incomplete or damaged; the extra "hub" is not installed.
    """
    library = import_library(str(hub))
    snapshot = _complete_commit(library, hub) or _newest_snapshot(library, hub)
    try:
        check_files(snapshot)
    except UserError as error:
        raise UserError(
            f"{hub}: {error}; delete {_repository_folder(snapshot)} to fetch it again, and if that does not help, the "
            "release on the hub is damaged"
        ) from error
    _record_revision(snapshot, hub)
    return snapshot


def check_files(folder: Path) -> list[str]:
    """The networks whose files lie in `folder`, of which each file of tensors is the one that its JSON describes.

    Raises:
        UserError: a file is missing, damaged, or not of a release; or there is none.
    """
    networks = [
        name
        for name in release.NETWORKS
        if any((folder / f"{name}{suffix}").exists() for suffix in (".json", ".safetensors"))
    ]
    if not networks and not (folder / release_folder.BASES).exists():
        raise UserError(f"{folder}: not a release; it has no network, such as lm.json with lm.safetensors")
    for name in networks:
        for suffix, other in ((".json", ".safetensors"), (".safetensors", ".json")):
            if not (folder / f"{name}{suffix}").is_file():
                raise UserError(
                    f"{folder}: has {name}{other} but no {name}{suffix}; the release is incomplete"
                )
        file = folder / f"{name}.safetensors"
        if files.file_hash(file) != release.read_description(folder, name)["sha256"]:
            raise UserError(f"{file}: damaged, not the file that {name}.json describes")
    return networks


def release_files() -> list[str]:
    """The names that files of a release can have; those of other names are neither fetched nor published."""
    networks = [f"{name}{suffix}" for name in release.NETWORKS for suffix in (".json", ".safetensors", ".md")]
    return [*networks, release.TOKENIZER, release_folder.BASES, *TEXTS]


def check_sizes(sizes: dict[str, int], place: str) -> None:
    """Raises `UserError` if a file of a release (name -> bytes), or all of them together, are too large."""
    for name, size in sizes.items():
        largest = MAX_TOKENIZER if name == release.TOKENIZER else MAX_BYTES[Path(name).suffix]
        if size > largest:
            raise UserError(f"{place}: {name} has {size} bytes; at most {largest} are possible")
    if sum(sizes.values()) > MAX_TOTAL:
        raise UserError(f"{place}: {sum(sizes.values())} bytes; a release has at most {MAX_TOTAL}")


def import_library(place: str) -> ModuleType:
    """The module `huggingface_hub`. Raises `UserError` if it, or the version that is needed, is not installed."""
    try:
        import httpx2  # noqa: F401  (earlier versions of the library use another one)
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise UserError(f"{place}: {install_hint(error.name or '', 'hub')}") from error
    return huggingface_hub


def endpoint() -> str:
    """The address of the hub: HF_ENDPOINT, or that of the library."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def unreachable_reason(error: Exception) -> str:
    """Why there is no network or the hub is out of order, in one line; empty for an error that says neither."""
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return f"status {status}" if status == 429 or status >= 500 else ""
    return _message(error) if isinstance(error, httpx2.TransportError) else ""


def explain(error: Exception, place: str) -> UserError:
    """The error of one line for an error of the library; `place` names the release."""
    from huggingface_hub import errors

    if isinstance(error, UserError):
        return error
    error = _cause(error)
    login = "log in with `hf auth login`, or set HF_TOKEN"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        problem = f"the owner grants access on request; ask for it on {endpoint()}, then {login}"
    elif isinstance(error, errors.RevisionNotFoundError):
        problem = "the repository has no such revision; give a branch, a tag or a commit hash"
    elif isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        problem = f"no such repository on {endpoint()}, or a private one; check the name, or {login}"
    elif status in (401, 403):
        problem = f"{endpoint()} refuses access ({status}); {login}, with a token that has the permission"
    elif isinstance(error, errors.HFValidationError):
        problem = f"not a name of the hub; it must be owner/name ({first_line(error)})"
    elif reason := unreachable_reason(error):
        problem = f"{endpoint()} cannot be reached ({reason}); try again later"
    else:
        problem = f"failed on {endpoint()} ({_message(error)})"
    return UserError(f"{place}: {problem}")


def _cause(error: Exception) -> Exception:
    """The error of the network that the library has wrapped, if there is one."""
    from huggingface_hub import errors

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, errors.HfHubHTTPError) or (
            isinstance(cause, Exception) and unreachable_reason(cause)
        ):
            return cause
        cause = cause.__cause__
    return error


def _message(error: Exception) -> str:
    """What the library says of an error, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _newest_snapshot(library: Any, hub: HubName) -> Path:
    """The snapshot that the hub has now or, if it cannot be reached, the one in the cache."""
    try:
        commit, names = _list_release(library, hub)
    except Exception as error:  # of the network, and of the library
        if not unreachable_reason(error):
            raise explain(error, str(hub)) from error
        return _cached(library, hub, error)
    return _complete_commit(library, HubName(hub.repo, commit)) or _download(library, hub, commit, names)


def _list_release(library: Any, hub: HubName) -> tuple[str, list[str]]:
    """Commit hash and files of the release.

    Raises the library's errors, and `UserError` if it is not a release, or too large.
    """
    info = library.HfApi(endpoint=endpoint()).model_info(
        hub.repo, revision=hub.revision or None, files_metadata=True, timeout=TIMEOUT
    )
    names = set(release_files())
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or [] if file.rfilename in names}
    if not sizes.keys() - set(TEXTS):
        raise UserError(f"{hub}: not a release of melody_jax; the repository has no lm.json or the like")
    if not _COMMIT.fullmatch(info.sha or ""):
        raise UserError(f"{hub}: {endpoint()} answers without a commit hash; HF_ENDPOINT must name a hub")
    check_sizes(sizes, str(hub))
    return str(info.sha), sorted(sizes)


def _download(library: Any, hub: HubName, commit: str, names: list[str]) -> Path:
    """The snapshot of a commit, whose missing files are fetched. Raises `UserError` if that fails."""
    from huggingface_hub import constants

    try:
        folder = library.snapshot_download(
            hub.repo, revision=commit, allow_patterns=names, endpoint=endpoint(), etag_timeout=TIMEOUT
        )
    except Exception as error:  # of the network, of the disk, and of the library
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(
                f"{hub}: cannot be saved in {constants.HF_HUB_CACHE} ({error.strerror})"
            ) from error
        reason = explain(error, str(hub))
        raise UserError(
            f"{reason}; not all files have arrived, those that have are kept for the next try"
        ) from error
    return Path(folder)


def _complete_commit(library: Any, hub: HubName) -> Path | None:
    """The snapshot of a commit hash, if all its files are in the cache; a commit never changes."""
    from huggingface_hub import errors

    if not _COMMIT.fullmatch(hub.revision):
        return None
    try:
        library.get_cached_repo_tree(hub.repo, revision=hub.revision)
        return _local_snapshot(library, hub)
    except (errors.CachedRepoTreeNotFoundError, errors.LocalEntryNotFoundError):
        return None


def _local_snapshot(library: Any, hub: HubName) -> Path:
    """The snapshot in the cache. Raises the library's `LocalEntryNotFoundError` if it is missing or incomplete."""
    return Path(
        library.snapshot_download(
            hub.repo, revision=hub.revision or None, allow_patterns=release_files(), local_files_only=True
        )
    )


def _cached(library: Any, hub: HubName, problem: Exception) -> Path:
    """The snapshot in the cache, with a warning unless the user wants to be offline; `problem` is why.

    Raises `UserError` if it is missing or incomplete.
    """
    from huggingface_hub import constants, errors

    reason = unreachable_reason(problem)
    try:
        snapshot = _local_snapshot(library, hub)
    except errors.LocalEntryNotFoundError as error:
        state = "incomplete" if isinstance(error, errors.IncompleteSnapshotError) else "missing"
        raise UserError(
            f"{hub}: {state} in the cache {constants.HF_HUB_CACHE}, and {endpoint()} cannot be reached "
            f"({reason}); load it once with a network"
        ) from error
    if not isinstance(problem, errors.OfflineModeIsEnabled):
        warnings.warn(
            InputWarning(
                f"{endpoint()} cannot be reached ({reason}); {hub} is commit {snapshot.name[:12]}, which is "
                "in the cache"
            ),
            stacklevel=2,
        )
    return snapshot


def _record_revision(snapshot: Path, hub: HubName) -> None:
    """Writes which commit a branch or tag is, where the library looks for it without a network.

    The library does so before it downloads. Here the snapshot is complete: until then, the one before it is loaded.
    """
    if _COMMIT.fullmatch(hub.revision):
        return
    file = _repository_folder(snapshot) / "refs" / (hub.revision or "main")
    with contextlib.suppress(UserError):  # a cache may be read-only
        files.make_folder(file.parent)
        files.write_bytes(file, snapshot.name.encode())


def _repository_folder(snapshot: Path) -> Path:
    """The cache's folder of a repository, from that of a snapshot."""
    return snapshot.parents[1]
