"""Layers that several networks share. B batch, T time, H heads, D channels.

Norms, softmax and rotary angles are computed in float32 whatever the compute dtype.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from melody_jax import roles
from melody_jax.roles import Kind, Role

MASKED = -1e9
"""What is added to an attention score that must not count."""


class Linear(nnx.Linear):
    """`nnx.Linear` whose parameters have roles: the kernel's is `role`, with `lora` as in `roles.Role`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        role: Kind = "column",
        lora: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            kernel_metadata={"role": Role(role, lora)},
            bias_metadata={"role": roles.BIAS},
            rngs=rngs,
            **options,
        )


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis with a learned gain (arXiv 1910.07467), `gain` at first."""

    def __init__(self, width: int, gain: float = 1.0, *, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(jnp.full(width, gain), role=roles.NORM)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., D) to the same shape and type."""
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-6)
        return (h * self.scale[...]).astype(x.dtype)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """(B, T, H * D) -> (B, H, T, D)."""
    b, t, width = x.shape
    return x.reshape(b, t, heads, width // heads).transpose(0, 2, 1, 3)


def merge_heads(x: jax.Array) -> jax.Array:
    """(B, H, T, D) -> (B, T, H * D)."""
    b, h, t, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, t, h * d)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Scaled dot-product attention on (B, H, T, D); `bias` is additive (0 or a large negative number).

    Batched matmuls in this layout are several times faster on XLA:CPU than `jax.nn.dot_product_attention`.
    """
    scores = (q @ k.swapaxes(-1, -2)).astype(jnp.float32) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return jax.nn.softmax(scores, axis=-1).astype(v.dtype) @ v


def rotary(x: jax.Array, positions: jax.Array, base: float = 10000.0) -> jax.Array:
    """Rotary position embedding (RoFormer, arXiv 2104.09864), halves convention.

    x is (B, H, T, D) with even D; `positions` is (T,) or (B, T), real numbers in any unit.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    if angles.ndim == 3:
        angles = angles[:, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


@jax.custom_vjp
def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise convolution over time with 'same' zero padding: x (B, T, D), kernel (W, D), odd W.

    Shifted multiply-adds: `lax.conv` with feature groups is two orders of magnitude slower on XLA:CPU. The derivative
    is written out because the automatic one, a sum of W padded arrays, takes four times as long.
    """
    width = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    return sum(padded[:, i : i + x.shape[1]] * kernel[i].astype(x.dtype) for i in range(width))  # type: ignore[return-value]


def _depthwise_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise_conv(x, kernel), (x, kernel)


def _depthwise_backward(saved: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    width = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    taps = [
        jnp.sum((padded[:, i : i + x.shape[1]] * slope).astype(kernel.dtype), axis=(0, 1))
        for i in range(width)
    ]
    return depthwise_conv(slope, kernel[::-1]), jnp.stack(taps)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)
