"""RoFormer on the merged sheets of dual-path diffusion: attention along segments and to the semantic tokens.

One layer is self-attention, feed-forward, cross-attention, feed-forward, each pre-norm and residual. Positions are
rotary (arXiv 2104.09864). Queries and keys share one time axis in token units, 25 per second: token t lies at t + 1/2.

Legend: C merged columns, B batch, S segments, U semantic tokens, W channels, H heads. Sheets are (C, B, S, W).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Real

from melody_jax.models.conditioning import Conditioning
from melody_jax.models.layers import MASKED, Linear, RMSNorm
from melody_jax.models.platform import attend

BRANCH_GAIN = 0.1
"""Initial size of a residual branch relative to its stream. Every block of DPD normalises the sum of the two: branches
of full size would drown the noisy latents within a few blocks, and hundreds of steps would go into undoing that."""

_branch_init = nnx.initializers.variance_scaling(BRANCH_GAIN**2, "fan_in", "truncated_normal")


def rotate(
    x: Float[Array, "*shape T W"], positions: Real[np.ndarray, "... T"], heads: int
) -> Float[Array, "*shape T W"]:
    """Rotary positions of (..., T, W) before its heads are split; `positions` broadcasts against (..., T).

    The same rotation as `layers.rotary`, which takes the heads in front: on XLA:CPU that order is a third slower.
    """
    half = x.shape[-1] // heads // 2
    angles = positions[..., None, None] * 10000.0 ** (-np.arange(half) / half)
    cos = jnp.asarray(np.cos(angles), jnp.float32)
    sin = jnp.asarray(np.sin(angles), jnp.float32)
    pairs = x.reshape(*x.shape[:-1], heads, 2, half).astype(jnp.float32)
    a = pairs[..., 0, :]
    b = pairs[..., 1, :]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-2).reshape(x.shape).astype(x.dtype)


class FeedForward(nnx.Module):
    """Pre-norm residual feed-forward layer."""

    def __init__(self, width: int, multiple: int, dtype: str, *, rngs: nnx.Rngs) -> None:
        self.norm = RMSNorm(width, rngs=rngs)
        self.hidden = Linear(width, multiple * width, lora=True, dtype=dtype, rngs=rngs)
        self.out = Linear(
            multiple * width, width, role="row", lora=True, kernel_init=_branch_init, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "*shape W"]) -> Float[Array, "*shape W"]:
        """(..., W) to the same."""
        return x + self.branch(self.norm(x))

    def branch(self, h: Float[Array, "*shape W"]) -> Float[Array, "*shape W"]:
        """The residual branch alone, of the normed stream (..., W)."""
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

    def self_attend(self, x: Float[Array, "C B S W"], positions: np.ndarray) -> Float[Array, "C B S W"]:
        """Every column attends to itself along S; positions (S,)."""
        return x + self.self_branch(self.norm(x), positions)

    def self_branch(self, h: Float[Array, "C B S W"], positions: np.ndarray) -> Float[Array, "C B S W"]:
        """The residual branch of `self_attend` alone, of the normed stream."""
        return self.out(self._along_segments(h, positions))

    def cross_attend(
        self,
        x: Float[Array, "C B S W"],
        cond: Conditioning,
        query_positions: Real[np.ndarray, "_ S"],
        self_positions: Real[np.ndarray, " S"],
    ) -> Float[Array, "C B S W"]:
        """Items with a condition attend to their tokens, the others to themselves as in `self_attend`.

        query_positions: (C, S), or (1, S) for all columns. self_positions: the positions for `self_attend`.
        """
        h = self.norm(x)
        has_condition = cond.has_condition
        if not isinstance(has_condition, int):
            to_tokens = self._to_tokens(h, query_positions, cond)
            to_self = self._along_segments(h, self_positions)
            return x + self.out(jnp.where(has_condition[:, None, None], to_tokens, to_self))
        parts = []
        if has_condition:
            parts.append(self._to_tokens(h[:, :has_condition], query_positions, cond))
        if has_condition < x.shape[1]:
            parts.append(self._along_segments(h[:, has_condition:], self_positions))
        return x + self.out(jnp.concatenate(parts, axis=1))

    def _along_segments(self, h: Array, positions: np.ndarray) -> Array:
        def split(x: Array) -> Array:
            return x.reshape(*x.shape[:-1], self.heads, -1).swapaxes(-2, -3)

        key, value = jnp.split(self.key_value(h), 2, axis=-1)
        query = rotate(self.query(h), positions[None, None], self.heads)
        key = rotate(key, positions[None, None], self.heads)
        return attend(split(query), split(key), split(value)).swapaxes(-2, -3).reshape(h.shape)

    def _to_tokens(self, h: Array, query_positions: np.ndarray, cond: Conditioning) -> Array:
        columns, batch, count, width = h.shape

        def split(x: Array) -> Array:
            return x.reshape(batch, -1, self.heads, width // self.heads).transpose(0, 2, 1, 3)

        key, value = jnp.split(self.key_value(cond.tokens), 2, axis=-1)
        query = self.query(h)
        bias = None
        if cond.token_mask is None:
            key = rotate(key, cond.token_positions[None], self.heads)
            query = rotate(query, query_positions[:, None], self.heads)
        else:
            bias = MASKED * (1 - cond.token_mask[:, None, None].astype(jnp.float32))
        # The columns of an item share its keys, so they form one long row of queries: (B, H, C S, W / H).
        query = query.reshape(columns, batch, count, self.heads, -1).transpose(1, 3, 0, 2, 4)
        y = attend(query.reshape(batch, self.heads, columns * count, -1), split(key), split(value), bias)
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
        def sublayers(name: str) -> dict[str, Any]:
            attention = Attention(width, heads, dtype, rngs=rngs)
            return {name: attention, f"{name}_feed": FeedForward(width, feed_forward, dtype, rngs=rngs)}

        self.cross = cross
        self.layers = nnx.List(
            [nnx.Dict(**sublayers("own"), **(sublayers("cross") if cross else {})) for _ in range(layers)]
        )

    def __call__(
        self,
        x: Float[Array, "C B S W"],
        cond: Conditioning,
        query_positions: np.ndarray,
        segment_positions: np.ndarray,
    ) -> Float[Array, "C B S W"]:
        """(C, B, S, W) to the same; positions as in `Attention.cross_attend`."""
        for layer in self.layers:
            x = layer.own_feed(layer.own.self_attend(x, segment_positions))
            if self.cross:
                x = layer.cross_feed(layer.cross.cross_attend(x, cond, query_positions, segment_positions))
        return x
