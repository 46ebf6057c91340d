"""Compiled programs are kept between tests and runs: most of the suite's time is compiling the same few of them."""

import os
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))  # in the environment: child processes share it
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
