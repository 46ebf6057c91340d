"""Settings of a process that must be made before it does numerical work."""

import contextlib
import os
import platform
import re
import sys
from pathlib import Path

from melody_jax.errors import UserError

ALLOCATOR = (
    "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:"
    "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"
)


def tune_allocator() -> None:
    """Restarts the running script once with glibc set to use huge pages and to keep freed memory.

    Page faults on large temporaries otherwise cost a CPU train step about a fifth of its time. glibc reads
    GLIBC_TUNABLES only as a process starts, hence the restart. A value that the user has set stays, and other C
    libraries are left alone. So is a script that was read from standard input or typed, which cannot be started again.
    Call it first thing in a script, before importing jax.
    """
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc" or not _can_restart():
        return
    os.environ["GLIBC_TUNABLES"] = ALLOCATOR
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _can_restart() -> bool:
    """Whether the program that Python runs is a file, a module or the text after -c."""
    if os.path.exists(getattr(sys.modules.get("__main__"), "__file__", "")):
        return True
    return any(re.fullmatch(r"-[A-VYZa-z]*c", word) for word in sys.orig_argv[1:2])


def check_devices() -> None:
    """Raises `UserError` if JAX_PLATFORMS names devices that are not there."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = (
            str(error).partition(" (")[0].removeprefix("Unable to initialize backend ").partition(": ")[2]
        )
        reason = f" ({reason})" if reason else ""
        raise UserError(
            f"JAX_PLATFORMS is {platforms!r}, but there is no such device{reason}; set it to cpu, or unset it"
        ) from error


def available_memory() -> int | None:
    """Bytes of memory that this process may still take, by the machine and its control group; None if unknown."""
    limits = []
    with contextlib.suppress(OSError):
        free = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
        limits += [int(free.group(1)) * 1024] if free else []
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: there is no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        used = int((group / "memory.current").read_text()) - (int(cached.group(1)) if cached else 0)
        limits.append(max(0, limit - used))
    return min(limits, default=None)


def enable_compile_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that later starts of a script skip compiling.

    The folder is `melody_jax` in $XDG_CACHE_HOME, or in ~/.cache; JAX_COMPILATION_CACHE_DIR, if set, wins. A folder
    that cannot be written is named on stderr; a user without a home folder has no cache.
    """
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return
    folder = home / "melody_jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        reason = "" if os.access(folder, os.W_OK) else "no permission"
    if reason:
        print(f"warning: {folder}: compiled programs cannot be kept there ({reason})", file=sys.stderr)
    else:
        jax.config.update("jax_compilation_cache_dir", str(folder))
