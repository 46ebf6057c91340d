"""`python sample.py "PROMPT" [options]` is `melody sample "PROMPT" [options]`."""

import sys

from melody_jax.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "sample")
    main()
