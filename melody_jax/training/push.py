"""Publishes a release on the Hugging Face Hub:

    melody push --release release/mine --to owner/name --licence apache-2.0

The release is checked, then uploaded in one commit with a card in the hub's format (`hub_card.py`). The token is that
of the hub's library: `hf auth login` or HF_TOKEN.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melody_jax import __version__, files, folders, hub, release, release_folder
from melody_jax.errors import UserError
from melody_jax.hub import HubName
from melody_jax.models.functional import count
from melody_jax.options import option
from melody_jax.training.hub_card import NetworkFacts, hub_card

CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Publishes a release on the Hugging Face Hub: the networks in one folder, with a model card."""

    release: str = option("", group="what to publish")
    """Folder of the release."""
    licence: str = ""
    """Licence of the weights as the hub writes it, such as apache-2.0. Default: that of the front matter of the
    release's README.md."""
    base_model: tuple[str, ...] = ()
    """Repositories of the models that this one was made from, for the card."""
    to: str = option("", group="where to publish")
    """The repository, owner/name; made if it does not exist."""
    private: bool = False
    """Only the owner sees the repository; one that exists must be private already."""
    revision: str = "main"
    """The branch; made if it does not exist."""
    message: str = ""
    """Message of the commit. Default: the name of the release and the version of this package."""
    dry_run: bool = False
    """Writes the card to --card and lists the files; nothing is sent."""
    card: Path = Path("card.md")
    """File of the card, with --dry-run."""


def push(config: PushConfig) -> None:
    """Checks and uploads the release, and prints its address and commit.

    Raises:
        UserError: the release is damaged or incomplete, its licence is missing, or the hub refuses it or cannot be
            reached.
    """
    for name in ("release", "to"):
        if not getattr(config, name):
            raise UserError(f"--{name} is missing; see melody push --help")
    target = _target(config)
    library = hub.import_library(str(target))
    folder = Path(config.release)
    facts = check_release(folder)
    readme = files.read_text(folder / CARD, hub.MAX_BYTES[".md"]) if (folder / CARD).exists() else ""
    card = hub_card(readme, target.repo, facts, config.licence, config.base_model)
    names = sorted({*release_contents(folder), CARD})
    if config.dry_run:
        files.write_bytes(config.card, card.encode())
        _print_files(folder, names, card)
        print(f"wrote {config.card}, the card; nothing was sent")
        return
    commit = _upload(library, config, target, {name: folder / name for name in names if name != CARD}, card)
    print(f"{hub.endpoint()}/{target.repo}: commit {commit.oid}")


def check_release(folder: Path) -> list[NetworkFacts]:
    """What the card says of the networks that lie in `folder`; each is read and checked as if it were loaded.

    Raises:
        UserError: there is none, one is damaged or was trained with another network than the one here, or a base does
            not come with the package, so that the release could not be loaded elsewhere.
    """
    folders.check_present(folder, "a release")
    sizes = {name: folders.size_of(folder / name) for name in release_contents(folder)}
    if irregular := [name for name, size in sizes.items() if size < 0]:
        raise UserError(f"{folder / irregular[0]}: not a regular file")
    hub.check_sizes(sizes, str(folder))
    names = hub.check_files(folder)
    for base in release_folder.base_names(folder):
        if not (release_folder.WEIGHTS / base).is_dir():
            raise UserError(
                f"{folder / release_folder.BASES}: the base {base!r} does not come with the package; copy the files of "
                "the networks that this release takes from it"
            )
    return [_check_network(folder, name) for name in names]


def release_contents(folder: Path) -> list[str]:
    """The names of the files in `folder` that belong to a release."""
    return [name for name in hub.release_files() if (folder / name).exists()]


def _check_network(folder: Path, name: str) -> NetworkFacts:
    params, _, hashes = release.read_network(folder, name)
    for other, digest in release.needed(name, hashes).items():
        if release_folder.has_network(folder, other) and release.network_hash(folder, other) != digest:
            raise UserError(
                f"{folder}: {name} was trained with another {other} ({digest[:12]}) than the one here; take all files "
                "from one release"
            )
    metrics = release.read_description(folder, name)["metrics"]
    if not all(isinstance(value, int | float) for value in metrics.values()):
        raise UserError(f"{folder / name}.json: metrics must be numbers")
    return NetworkFacts(name, count(params), folders.size_of(folder / f"{name}.safetensors"), hashes, metrics)


def _target(config: PushConfig) -> HubName:
    """The repository. Raises `UserError` for another name than owner/name."""
    text = config.to.removeprefix(hub.SCHEME)
    if not hub.NAME.fullmatch(text) or "@" in text:
        raise UserError(f"--to {config.to}: it must be owner/name; the branch is --revision")
    match = hub.NAME.fullmatch(f"{text}@{config.revision}")
    if match is None:
        raise UserError(f"--revision {config.revision}: not the name of a branch, such as main")
    return HubName(match[1], match[2])


def _print_files(folder: Path, names: list[str], card: str) -> None:
    """One line per file that would be uploaded."""
    sizes = {name: folders.size_of(folder / name) for name in names} | {CARD: len(card.encode())}
    for name in names:
        print(f"{sizes[name]:>15,}  {name}")
    print(f"{sum(sizes.values()):>15,}  bytes in {len(names)} files")
    others = sorted({entry.name for entry in folder.iterdir()} - set(names))
    if others:
        print(f"not of a release, left out: {', '.join(others)}")


def _upload(library: Any, config: PushConfig, target: HubName, contents: dict[str, Path], card: str) -> Any:
    """Makes the repository and the branch if they are missing, and commits; returns the library's record of it."""
    if not library.get_token():
        raise UserError("no token of the hub: log in with `hf auth login`, or set HF_TOKEN")
    api = library.HfApi(endpoint=hub.endpoint(), library_name="melody_jax", library_version=__version__)
    try:
        api.create_repo(target.repo, private=config.private, exist_ok=True)
        info = api.model_info(target.repo, timeout=hub.TIMEOUT)
        if config.private and not info.private:
            raise UserError(
                f"{target.repo} exists and is public; leave --private out, or make it private on the hub's page"
            )
        if config.revision != "main":
            api.create_branch(target.repo, branch=config.revision, exist_ok=True)
            info = api.model_info(target.repo, revision=config.revision, timeout=hub.TIMEOUT)
        return api.create_commit(
            target.repo,
            operations=list(_operations(library, info, contents, card)),
            commit_message=config.message
            or f"{Path(config.release).resolve().name}, by melody_jax {__version__}",
            revision=config.revision,
            parent_commit=info.sha,  # a commit of somebody else in the meantime is not undone
        )
    except Exception as error:  # of the network, and of the library
        raise hub.explain(error, str(target)) from error


def _operations(library: Any, info: Any, contents: dict[str, Path], card: str) -> Iterator[Any]:
    """The changes of the commit: the files of the release, and the removal of those of networks that it lacks."""
    yield library.CommitOperationAdd(CARD, card.encode())
    for name, path in contents.items():
        yield library.CommitOperationAdd(name, str(path))
    present = {file.rfilename for file in info.siblings or []}
    for name in sorted(present & set(hub.release_files()) - contents.keys() - {CARD}):
        yield library.CommitOperationDelete(name)
