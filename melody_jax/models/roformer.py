"""RoFormer on the merged sheets of dual-path diffusion: attention along segments and to the semantic tokens.

One layer is self-attention, feed-forward, cross-attention, feed-forward, each pre-norm and residual. Positions are
rotary (arXiv 2104.09864) and on one clock for both sides, in token units: 25 a second, token t at t + 1/2.

Legend: C merged columns, B batch, S segments, U semantic tokens, W channels, H heads. Sheets are (C, B, S, W).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from melody_jax.models.layers import Linear, RMSNorm, attend

BRANCH_GAIN = 0.1
"""Size of a new branch beside the stream it is added to. Every block of DPD normalises the sum of the two: branches of
full size would drown the noisy latents within a few blocks, and the first hundreds of steps go into digging them out.
"""

_branch_init = nnx.initializers.variance_scaling(BRANCH_GAIN**2, "fan_in", "truncated_normal")


class Condition(NamedTuple):
    """What cross-attention needs to know."""

    tokens: jax.Array
    """(B, U, W) token embeddings; (n, U, W) where `conditioned` is a number n."""
    conditioned: jax.Array | int
    """(B,) bool, which items have a condition; or a Python int n, the first n have one and the rest have not."""
    clock: np.ndarray
    """(U,) the tokens' times in token units."""
    segment_clock: np.ndarray
    """(S,) the segments' times in token units."""


def rotate(x: jax.Array, clock: np.ndarray, heads: int) -> jax.Array:
    """Rotary positions of (..., T, W) before its heads are split; `clock` broadcasts against (..., T).

    The same turn as `layers.rotary`, which wants the heads in front: on XLA:CPU that order is a third slower.
    """
    half = x.shape[-1] // heads // 2
    turns = clock[..., None, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = (jnp.asarray(f(turns), jnp.float32) for f in (np.cos, np.sin))
    pairs = x.reshape(*x.shape[:-1], heads, 2, half).astype(jnp.float32)
    a, b = pairs[..., 0, :], pairs[..., 1, :]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-2).reshape(x.shape).astype(x.dtype)


class FeedForward(nnx.Module):
    """Pre-norm residual feed-forward layer."""

    def __init__(self, width: int, multiple: int, dtype: str, *, rngs: nnx.Rngs) -> None:
        self.norm = RMSNorm(width, rngs=rngs)
        self.hidden = Linear(width, multiple * width, lora=True, dtype=dtype, rngs=rngs)
        self.out = Linear(
            multiple * width, width, role="row", lora=True, kernel_init=_branch_init, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., W) to the same."""
        return x + self.of_normed(self.norm(x))

    def of_normed(self, h: jax.Array) -> jax.Array:
        """What is added to the stream (..., W), given what its norm made of it."""
        return self.out(jax.nn.gelu(self.hidden(h)))


class Attention(nnx.Module):
    """Pre-norm residual attention of a merged sheet (C, B, S, W), along its segments or to the tokens.

    Layouts and batched matmuls are those that XLA:CPU runs fast; see `layers.attend`.
    """

    def __init__(self, width: int, heads: int, dtype: str, *, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.norm = RMSNorm(width, rngs=rngs)
        linear = partial(Linear, use_bias=False, lora=True, dtype=dtype, rngs=rngs)
        self.query = linear(width, width)
        self.key_value = linear(width, 2 * width)
        self.out = linear(width, width, role="row", kernel_init=_branch_init)

    def along(self, x: jax.Array, clock: np.ndarray) -> jax.Array:
        """Every column attends to itself along S; clock (S,)."""
        return x + self.of_itself(self.norm(x), clock)

    def of_itself(self, h: jax.Array, clock: np.ndarray) -> jax.Array:
        """What `along` adds to the stream, given what its norm made of it."""
        return self.out(self._along(h, clock))

    def across(self, x: jax.Array, clock: np.ndarray, context: Condition) -> jax.Array:
        """Items with a condition attend to their tokens, the others as in `along`.

        clock, (C, S) or (1, S) for all columns, is when each query sounds.
        """
        h, conditioned = self.norm(x), context.conditioned
        if isinstance(conditioned, int):
            parts = (
                [self._across(h[:, :conditioned], clock, context.tokens, context.clock)]
                if conditioned
                else []
            )
            if conditioned < x.shape[1]:
                parts.append(self._along(h[:, conditioned:], context.segment_clock))
            return x + self.out(jnp.concatenate(parts, axis=1))
        tokens = self._across(h, clock, context.tokens, context.clock)
        own = self._along(h, context.segment_clock)
        return x + self.out(jnp.where(conditioned[:, None, None], tokens, own))

    def _along(self, h: jax.Array, clock: np.ndarray) -> jax.Array:
        def split(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:-1], self.heads, -1).swapaxes(-2, -3)

        key, value = jnp.split(self.key_value(h), 2, axis=-1)
        query, key = (rotate(x, clock[None, None], self.heads) for x in (self.query(h), key))
        return attend(split(query), split(key), split(value)).swapaxes(-2, -3).reshape(h.shape)

    def _across(
        self, h: jax.Array, clock: np.ndarray, tokens: jax.Array, token_clock: np.ndarray
    ) -> jax.Array:
        columns, batch, count, width = h.shape

        def split(x: jax.Array) -> jax.Array:
            return x.reshape(batch, -1, self.heads, width // self.heads).transpose(0, 2, 1, 3)

        key, value = jnp.split(self.key_value(tokens), 2, axis=-1)
        key = rotate(key, token_clock[None], self.heads)
        # The columns of an item share its keys, so they are one long row of queries: (B, H, C S, W / H).
        query = rotate(self.query(h), clock[:, None], self.heads)
        query = query.reshape(columns, batch, count, self.heads, -1).transpose(1, 3, 0, 2, 4)
        y = attend(query.reshape(batch, self.heads, columns * count, -1), split(key), split(value))
        y = y.reshape(batch, self.heads, columns, count, -1).transpose(2, 0, 3, 1, 4)
        return y.reshape(columns, batch, count, width)


class RoFormer(nnx.Module):
    """The coarse path on a merged sheet (C, B, S, W): attention along S and, if `cross`, to the tokens."""

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        layers: int,
        dtype: str,
        cross: bool = True,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        def half(name: str) -> dict[str, Any]:
            attention = Attention(width, heads, dtype, rngs=rngs)
            return {name: attention, f"{name}_feed": FeedForward(width, feed_forward, dtype, rngs=rngs)}

        self.cross = cross
        self.layers = nnx.List(
            [nnx.Dict(**half("own"), **(half("cross") if cross else {})) for _ in range(layers)]
        )

    def __call__(self, x: jax.Array, clock: np.ndarray, context: Condition) -> jax.Array:
        """(C, B, S, W) to the same; `clock` as in `Attention.across`."""
        for layer in self.layers:
            x = layer.own_feed(layer.own.along(x, context.segment_clock))
            if self.cross:
                x = layer.cross_feed(layer.cross.across(x, clock, context))
        return x
