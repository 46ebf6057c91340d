"""`melody studio [options]`: serves the page and its HTTP API until it is interrupted."""

import contextlib
import os
import socket
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melody_jax import files, hub, release_folder, release_source
from melody_jax.errors import UserError
from melody_jax.options import check_fields, option
from melody_jax.studio import security
from melody_jax.studio.client_limits import ClientLimits
from melody_jax.studio.job import QueueLimits
from melody_jax.studio.takes import Release
from melody_jax.studio.uploads import UploadLimits
from melody_jax.systems import SYSTEMS, load

if TYPE_CHECKING:  # `--help` does not need the networks
    from melody_jax.sampling.system import System

TOKEN_VARIABLE = "MELODY_STUDIO_TOKEN"
MAX_TOKEN_FILE = 1 << 12
"""Bytes of the largest file of a token."""
WILDCARDS = ("0.0.0.0", "::", "")
BACKLOG = 512
"""Connections that the system accepts before the studio does."""


@dataclass(frozen=True, kw_only=True)
class StudioConfig:
    """Serves a page in which music is made, and an HTTP API for other programs (docs/studio.md)."""

    model: str = option("mini", group="model")
    """Name of a released model, or owner/name of one on the Hugging Face Hub (docs/hub.md)."""
    folder: Path | None = None
    """Folder of released models. Default: those that ship with the package."""
    system: str = option("melody", choices=tuple(SYSTEMS))
    """Kind of the model: melody, musiclm, audiolm, noise2music or mousai."""
    distilled: bool = False
    """Uses the distilled diffusion, for few steps."""

    project: Path = option(Path("studio"), group="what is kept")
    """Folder of the takes, the sounds that they are made from, and the votes. It is made if it is missing."""

    host: str = option("127.0.0.1", group="address")
    """Address that the server listens on: the loopback is for this machine alone; 0.0.0.0 is for all others too, and
    needs a token."""
    port: int = option(7860, least=0, most=65_535)
    """Port that the server listens on; 0: any free one."""
    names: tuple[str, ...] = ()
    """Further names under which browsers may open the page, such as that of a reverse proxy."""
    token_file: Path | None = None
    """File with the token that clients must show. Default: the environment variable MELODY_STUDIO_TOKEN."""
    browser: bool = True
    """Opens the page in the browser of this machine, if it has a display."""

    queue: QueueLimits = field(default_factory=QueueLimits)
    """Limits of the queue."""
    uploads: UploadLimits = field(default_factory=UploadLimits)
    """Limits of uploaded sounds."""
    clients: ClientLimits = field(default_factory=ClientLimits)
    """Limits of each client, by its address."""

    def __post_init__(self) -> None:
        check_fields(self)


def studio(config: StudioConfig) -> None:
    """Serves until SIGINT or SIGTERM; the running job is cancelled then, and the takes are on the disk.

    Raises:
        UserError: the address is not the loopback and there is no token, the port or the project is in use, the model
            is not valid, or options exclude each other.
    """
    if config.distilled and config.system != "melody":
        raise UserError(f"--distilled needs --system melody; {config.system} does not have it")
    policy = make_policy(config)
    from melody_jax.studio.project import open_project
    from melody_jax.studio.serve import serve  # the extra

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(config.host, config.port))
        project = stack.enter_context(open_project(config.project))
        system, release = load_system(config)
        address = page_address(config.host, listener.getsockname()[1])
        print(describe(system, release), flush=True)
        announcement = f"{address} serves the project {config.project}; Ctrl-C ends it"
        if policy.token is not None:
            announcement += f"\nopen {address}/?token=TOKEN once with the token in place of TOKEN"
        serve(
            system=system,
            release=release,
            project=project,
            policy=policy,
            queue_limits=config.queue,
            upload_limits=config.uploads,
            limits=described_limits(config),
            listener=listener,
            announcement=announcement,
            browser_address=address if config.browser and policy.token is None and has_display() else "",
        )


def make_policy(config: StudioConfig) -> security.Policy:
    """Whom the server lets in. Raises `UserError` for an address beyond this machine without a token."""
    token = read_token(config)
    is_public = not security.is_loopback(config.host)
    if is_public and token is None:
        raise UserError(
            f"--host {config.host} can be reached from other machines; give --token-file FILE or set {TOKEN_VARIABLE}, "
            "or leave --host out"
        )
    names = {*security.LOOPBACK_NAMES, *(name.lower().rstrip(".") for name in config.names)}
    if is_public:
        names |= {socket.gethostname().lower()} | ({config.host.lower()} - set(WILDCARDS))
    return security.Policy(
        names=frozenset(names),
        token=token,
        clients=config.clients,
        upload_bytes=config.uploads.max_bytes,
    )


def read_token(config: StudioConfig) -> str | None:
    """The token of the file or of the environment, None without either. Raises `UserError` for one that is no token."""
    if config.token_file is not None:
        return security.check_token(files.read_text(config.token_file, MAX_TOKEN_FILE).strip())
    text = os.environ.get(TOKEN_VARIABLE, "").strip()
    return security.check_token(text) if text else None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `UserError` for a port in use, and for a host that is none of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: {getattr(error, 'strerror', None) or error}") from None
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(
            f"--host {host} --port {port}: {error.strerror}; give another port, or end the program that has it"
        ) from None
    return listener


def load_system(config: StudioConfig) -> tuple["System", Release]:
    """The model, with its tokenizer if it has one, and its name. Raises `UserError` as `systems.load` does."""
    from melody_jax.runtime import enable_compile_cache
    from melody_jax.sampling.plan import NETWORKS

    enable_compile_cache()
    name = hub.pin(config.model, config.folder)
    options: dict[str, Any] = {}
    if config.system == "melody":
        local, folder = release_source.local_name(name, config.folder)
        has_tokenizer = release_folder.has_network(release_folder.root(folder) / local, "tokenizer")
        networks = (*NETWORKS, "tokenizer") if has_tokenizer else NETWORKS
        options = {"networks": networks, "distilled": config.distilled}
    system = load(name, system=config.system, folder=config.folder, **options)
    return system, Release(name=name, system=config.system, distilled=config.distilled)


def describe(system: "System", release: Release) -> str:
    """One line on the release that plays, and the memory of this machine."""
    from melody_jax.models.functional import count
    from melody_jax.studio.machine import machine_memory, memory_bytes

    kind = f"{release.system}, distilled" if release.distilled else release.system
    return (
        f"{release.name} ({kind}): {system.audio_format}, windows of {system.window_seconds:g} s, "
        f"{count(system.params) / 1e6:.1f} M parameters; {memory_bytes() / 1e9:.2f} GB of "
        f"{machine_memory() / 1e9:.1f} GB memory are in use by the studio"
    )


def described_limits(config: StudioConfig) -> dict[str, Any]:
    """The limits of uploads and clients, by their options' names."""
    groups = {"uploads": config.uploads, "clients": config.clients}
    return {
        f"{group}.{name}": value for group, limits in groups.items() for name, value in asdict(limits).items()
    }


def page_address(host: str, port: int) -> str:
    """The address of the page for a person."""
    name = socket.gethostname() if host in WILDCARDS else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def has_display() -> bool:
    """Whether a browser can open a window here."""
    is_desktop = sys.platform in ("darwin", "win32")
    return is_desktop or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
