"""What must be settled before a process does numerical work."""

import os
import platform
import sys

ALLOCATOR = (
    "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:"
    "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"
)


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
