"""Digests of what a step sees and draws: two runs are paired if theirs are equal, step by step.

`TrainConfig.watch.digests` adds them to the metrics of a run, as "digest/batch" and "digest/<what is drawn>".
"""

from typing import Any

import jax
import jax.numpy as jnp

from melody_jax.errors import UserError
from melody_jax.training.stage import Batch, Metrics, Stage

DIGEST = "digest/"
"""How the names of digests begin in the metrics of a run."""


def digest(tree: Any) -> jax.Array:
    """() uint32 of the bits of all arrays and of where they stand, so that equal trees alone have equal ones.

    (But for chance: unlike trees agree once in 2^32.)
    """
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        bits = leaf.reshape(-1)
        bits = (
            bits.astype(jnp.uint32)
            if bits.dtype.itemsize != 4
            else jax.lax.bitcast_convert_type(bits, jnp.uint32)
        )
        places = jax.lax.iota(jnp.uint32, bits.size) + jnp.uint32(number)
        total = _mixed(total + _mixed(bits ^ _mixed(places)).sum(dtype=jnp.uint32))
    return total


def digests(stage: Stage, batch: Batch, key: jax.Array) -> Metrics:
    """The digests of a batch and of everything that `stage.draw` draws for it with the step's key.

    Raises:
        UserError: the stage does not say what it draws.
    """
    draw = getattr(stage, "draw", None)
    if draw is None:
        raise UserError(f"watch.digests: {stage.name} does not say what it draws; dpd does")
    parts = {"batch": batch} | draw(batch, key)._asdict()
    return {DIGEST + name: digest(part) for name, part in parts.items()}


def _mixed(x: jax.Array) -> jax.Array:
    """Every bit of the result depends on every bit of x (the finalizer of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
