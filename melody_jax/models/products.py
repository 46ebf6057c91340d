"""Products of activations with weights, in bfloat16 if JAX is told so.

Under `jax.default_matmul_precision("bfloat16")`, the products and their derivatives have bfloat16 factors and float32
sums. That is what TPUs compute by default. XLA:CPU ignores the setting, although processors with bfloat16 units
(`avx512_bf16`, `amx_bf16`) multiply two to four times faster with them.

D channels, E channels of the result.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SETTING = "bfloat16"
"""The value of JAX's setting that is honoured here."""
_float32_sums = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)


def product(
    x: Float[Array, "*rows D"],
    kernel: Float[Array | np.ndarray, "D E"],
    dimension_numbers: Any = None,
    **settings: Any,
) -> Float[Array, "*rows E"]:
    """Rows times a kernel. Replaces `jax.lax.dot_general` in layers whose input has its channels last."""
    in_float32 = x.dtype == kernel.dtype == jnp.float32
    setting = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if in_float32 and setting == SETTING:
        return _bfloat16_product(x, kernel)
    return jax.lax.dot_general(x, kernel, _channels_last(x), **settings)


def product_precision(setting: str) -> AbstractContextManager[Any]:
    """A context in which products follow `TrainConfig.matmul_precision`."""
    return nullcontext() if setting == "default" else jax.default_matmul_precision(setting)


def _channels_last(x: Array) -> Any:
    return ((x.ndim - 1,), (0,)), ((), ())


@jax.custom_vjp
def _bfloat16_product(x: Array, kernel: Array) -> Array:
    return _float32_sums(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), _channels_last(x))


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _bfloat16_product(x, kernel), (x, kernel)


def _backward(factors: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = (factor.astype(jnp.bfloat16) for factor in factors)
    cotangent = cotangent.astype(jnp.bfloat16)
    rows = tuple(range(x.ndim - 1))
    d_x = _float32_sums(cotangent, kernel, (((x.ndim - 1,), (1,)), ((), ())))
    return d_x, _float32_sums(x, cotangent, ((rows, rows), ((), ())))


_bfloat16_product.defvjp(_forward, _backward)
