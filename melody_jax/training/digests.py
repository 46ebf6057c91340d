"""Digests of a step's batch and random draws: two runs are paired if their digests are equal at every step.

`TrainConfig.watch.digests` adds them to the metrics of a run, as "digest/batch" and "digest/<name of the draw>".
"""

from typing import Any

import jax
import jax.numpy as jnp

from melody_jax.errors import UserError
from melody_jax.training.stage import Batch, Metrics, Stage

DIGEST = "digest/"
"""Prefix of the digests' names in the metrics of a run."""


def digest(tree: Any) -> jax.Array:
    """() uint32 of the bits and positions of all numbers in a tree; different trees agree with probability 2^-32."""
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        bits = leaf.reshape(-1)
        is_word = bits.dtype.itemsize == 4
        bits = jax.lax.bitcast_convert_type(bits, jnp.uint32) if is_word else bits.astype(jnp.uint32)
        positions = jax.lax.iota(jnp.uint32, bits.size) + jnp.uint32(number)
        total = _mixed(total + _mixed(bits ^ _mixed(positions)).sum(dtype=jnp.uint32))
    return total


def digests(stage: Stage, batch: Batch, key: jax.Array) -> Metrics:
    """The digests of a batch and of what `stage.draw` draws for it with the step's key.

    Raises:
        UserError: the stage does not report its draws.
    """
    draws = stage.draw(batch, key)
    if draws is None:
        raise UserError(f"watch.digests: stage {stage.name} does not report its draws; stage dpd does")
    parts = {"batch": batch} | draws._asdict()
    return {DIGEST + name: digest(part) for name, part in parts.items()}


def _mixed(x: jax.Array) -> jax.Array:
    """Every bit of the result depends on every bit of x (the finalizer of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
