"""Training of a residual quantiser: straight-through gradients, and codebooks that follow what they quantise.

Each code is a moving average of the residuals that are assigned to it, as in SoundStream (arXiv 2107.03312, section
3.3); codes that are hardly used move to random residuals of the batch. Averages are no gradients, but they reach the
state as such: the "gradient" of a parameter with the role "tracked" is its value minus the new one (training/state.py).

B batch, L latents, D latent channels, V levels, C codes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from melody_jax.models import nearest_code
from melody_jax.models.functional import Params
from melody_jax.models.rvq import QuantiserConfig
from melody_jax.roles import TRACKED, Roles
from melody_jax.training.state import early_decay

ROLES: Roles = {"counts": TRACKED, "sums": TRACKED, "age": TRACKED}
RELEASED_AGE = 1e6
"""Steps that the averages of a release count as."""


class Quantised(NamedTuple):
    """A batch of latents through the quantiser."""

    latents: Float[Array, "B L D"]
    """Sum of the codes; its gradient is that of the latents before quantisation."""
    commitment: Float[Array, ""]
    """Mean squared distance of residuals from their codes, mean over levels in use; its gradient reaches the residuals
    alone."""
    codes: Int[Array, "V B L"]
    residuals: Float[Array, "V B L D"]
    """What each level quantises."""
    is_used: Float[Array, "V B"]
    """1 where an item has the level, else 0."""


def init(config: QuantiserConfig, width: int) -> Params:
    """Empty averages: {"counts" (V, C), "sums" (V, C, D), "age" (V,), steps}. In the first step the codes move to
    residuals of the batch."""
    shape = (config.levels, config.codes)
    return {
        "counts": jnp.zeros(shape),
        "sums": jnp.zeros((*shape, width)),
        "age": jnp.zeros(config.levels),
    }


def draw_levels(key: PRNGKeyArray, batch: int, levels: int, dropout: float) -> Int[Array, " B"]:
    """Levels that each item keeps: all of them, or with the probability `dropout` 1 to V of them, uniformly drawn."""
    keys = jax.random.split(key)
    fewer = jax.random.randint(keys[0], (batch,), 1, levels + 1)
    return jnp.where(jax.random.bernoulli(keys[1], dropout, (batch,)), fewer, levels)


def quantise(
    codebooks: Float[Array, "V C D"], latents: Float[Array, "B L D"], depths: Int[Array, " B"]
) -> Quantised:
    """Quantises latents with the first `depths` levels of each item."""
    levels = len(codebooks)
    is_used = (jnp.arange(levels)[:, None] < depths).astype(jnp.float32)

    def level(
        carry: tuple[Array, Array, Array], part: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        residual, total, loss = carry
        codebook, used = part
        flat = residual.reshape(-1, residual.shape[-1])
        codes = jnp.argmin(nearest_code.distances(flat, codebook), axis=-1).reshape(residual.shape[:-1])
        chosen = jax.lax.stop_gradient(codebook[codes])
        loss += (used[:, None, None] * (residual - chosen) ** 2).mean()
        total += used[:, None, None] * chosen
        return (residual - chosen, total, loss), (codes.astype(jnp.int32), residual)

    start = (latents, jnp.zeros_like(latents), jnp.float32(0))
    (_, total, loss), (codes, residuals) = jax.lax.scan(level, start, (codebooks, is_used))
    straight = latents + jax.lax.stop_gradient(total - latents)
    return Quantised(straight, loss / is_used.mean(1).sum(), codes, jax.lax.stop_gradient(residuals), is_used)


def follow(
    averages: Params,
    codebooks: Float[Array, "V C D"],
    quantised: Quantised,
    decay: float,
    dead_share: float,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "V C D"], Params]:
    """The "gradients" of the codebooks and of their averages after a batch.

    decay: of the moving averages, per step; less while they are young (`early_decay`). dead_share: a code moves to a
    random residual of the batch when its average count falls below this share of the mean count. Codebooks of a
    release, which has no averages, are kept.
    """

    def level(
        key: Array, averages: Params, book: Array, codes: Array, residuals: Array, used: Array
    ) -> Params:
        counts = averages["counts"]
        sums = averages["sums"]
        rows = residuals.reshape(-1, residuals.shape[-1])
        weights = jnp.repeat(used, residuals.shape[1])
        member = jax.nn.one_hot(codes.reshape(-1), len(counts)) * weights[:, None]
        mean = weights.sum() / len(counts)
        is_released = (counts.sum() == 0) & jnp.any(book != 0)
        counts = jnp.where(is_released, mean, counts)
        sums = jnp.where(is_released, mean * book, sums)
        age = jnp.where(is_released, RELEASED_AGE, averages["age"])
        share = early_decay(decay, age)
        counts = share * counts + (1 - share) * member.sum(0)
        sums = share * sums + (1 - share) * (member.T @ rows)
        mean = counts.mean()
        is_dead = counts < dead_share * mean
        moved = rows[jax.random.randint(key, counts.shape, 0, len(rows))]
        counts = jnp.where(is_dead, mean, counts)
        return {"counts": counts, "sums": jnp.where(is_dead[:, None], mean * moved, sums), "age": age + 1}

    keys = jax.random.split(key, len(codebooks))
    new = jax.vmap(level)(keys, averages, codebooks, quantised.codes, quantised.residuals, quantised.is_used)
    moved = codebooks - new["sums"] / jnp.maximum(new["counts"], 1e-12)[..., None]
    return moved, jax.tree.map(jnp.subtract, averages, new)


def usage(codes: Int[Array, "B L V"], size: int) -> dict[str, Float[Array, ""]]:
    """For each level "level_<i>/used", the share of its codes that occur, and "level_<i>/bits", their entropy."""
    metrics = {}
    for level in range(codes.shape[-1]):
        share, evenness = nearest_code.usage(codes[..., level], size)
        metrics[f"level_{level:02d}/used"] = share
        metrics[f"level_{level:02d}/bits"] = jnp.log2(evenness * size)
    return metrics
