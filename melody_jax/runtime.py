"""Settings of a process that must be made before it does numerical work."""

import os
import platform
import sys
from pathlib import Path

ALLOCATOR = (
    "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:"
    "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"
)


def tune_allocator() -> None:
    """Restarts the running script once with glibc set to use huge pages and to keep freed memory.

    Page faults on large temporaries otherwise cost a CPU train step about a fifth of its time. glibc reads
    GLIBC_TUNABLES only as a process starts, hence the restart. A value that the user has set stays, and other C
    libraries are left alone. Call it first thing in a script, before importing jax.
    """
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc":
        return
    os.environ["GLIBC_TUNABLES"] = ALLOCATOR
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def enable_compile_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that later starts of a script skip compiling.

    The folder is `melody_jax` in $XDG_CACHE_HOME, or in ~/.cache; JAX_COMPILATION_CACHE_DIR, if set, wins.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "melody_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
