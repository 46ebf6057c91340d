"""What must be settled before a process does numerical work."""

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from melody_jax.errors import UserError

if TYPE_CHECKING:  # `tune_allocator` restarts the process: little may be imported before it
    from melody_jax.config import HostsConfig

ALLOCATOR = (
    "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:"
    "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"
)

HEARTBEAT = 30
"""Seconds of silence after which a process counts as gone and the others end too, for a supervisor to restart all."""


def tune_allocator() -> None:
    """Restarts the running script once with glibc told to use huge pages and to keep freed memory.

    Page faults on large temporaries otherwise cost a CPU train step about a fifth of its time. glibc reads
    GLIBC_TUNABLES only as a process starts, hence the restart; a value the user has set is respected, and other C
    libraries are left alone. Call it first thing in a script, before importing jax.
    """
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc":
        return
    os.environ["GLIBC_TUNABLES"] = ALLOCATOR
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def enable_compile_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that the second start of a script skips compiling.

    The folder is `melody_jax` in $XDG_CACHE_HOME, or in ~/.cache; JAX_COMPILATION_CACHE_DIR, if set, wins.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "melody_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def join_hosts(hosts: "HostsConfig") -> None:
    """Makes this process one of those that train together; call it before anything touches a device.

    Raises:
        UserError: the others are not found, or do not answer.
    """
    if not hosts.join:
        return
    import jax

    try:
        jax.distributed.initialize(
            hosts.coordinator or None,
            hosts.count or None,
            hosts.index if hosts.coordinator else None,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0][:200]
        raise UserError(f"--hosts.join: the other processes are not there ({reason})") from None
