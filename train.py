"""`python train.py CONFIG [options]` is `melody train CONFIG [options]`."""

import sys

from melody_jax.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
