"""Products in bfloat16: exact where they can be, close elsewhere, under JAX's own setting, in whole networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.models import lm, lm_config
from melody_jax.models.products import product

BFLOAT16 = "bfloat16"


def rounded(x: np.ndarray) -> np.ndarray:
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32))


def factors(*lead: int) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(*lead, 64)), jnp.float32), jnp.asarray(
        rng.normal(size=(64, 32)), jnp.float32
    )


@pytest.mark.parametrize("lead", [(5,), (2, 3), (2, 3, 4)])
def test_factors_are_rounded_and_sums_are_not(lead: tuple[int, ...]) -> None:
    x, kernel = factors(*lead)
    with jax.default_matmul_precision(BFLOAT16):
        result = jax.jit(product)(x, kernel)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, rounded(x) @ rounded(kernel), rtol=1e-5, atol=1e-5)
    assert np.abs(result - x @ kernel).max() > 1e-3
    np.testing.assert_array_equal(jax.jit(product)(x, kernel), jax.jit(jnp.matmul)(x, kernel))


def test_derivatives_have_rounded_factors_too() -> None:
    x, kernel = factors(2, 7)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7, 32)), jnp.float32)
    with jax.default_matmul_precision(BFLOAT16):
        _, pull = jax.vjp(product, x, kernel)
        d_x, d_kernel = pull(cotangent)
    np.testing.assert_allclose(d_x, rounded(cotangent) @ rounded(kernel).T, rtol=1e-4, atol=1e-5)
    expected = np.einsum("bnd,bne->de", rounded(x), rounded(cotangent))
    np.testing.assert_allclose(d_kernel, expected, rtol=1e-4, atol=1e-4)


def test_a_jitted_function_follows_the_setting() -> None:
    """The setting is part of what JAX compiles for: no stale program is used when it changes."""
    x, kernel = factors(5)
    compiled = jax.jit(product)
    plain = compiled(x, kernel)
    with jax.default_matmul_precision(BFLOAT16):
        assert np.abs(compiled(x, kernel) - plain).max() > 1e-3
    np.testing.assert_array_equal(compiled(x, kernel), plain)


def test_other_types_are_left_alone() -> None:
    x, kernel = factors(5)
    half = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    plain = product(*half)
    with jax.default_matmul_precision(BFLOAT16):
        assert product(*half).dtype == jnp.bfloat16
        np.testing.assert_array_equal(product(*half), plain)


def test_a_network_changes_by_little() -> None:
    params = lm.init(lm_config.TINY, jax.random.key(0))
    given = jnp.arange(12)[None] % 8, jnp.arange(20)[None] % 64
    plain = lm.logits(params, lm_config.TINY, *given)
    with jax.default_matmul_precision(BFLOAT16):
        half = lm.logits(params, lm_config.TINY, *given)
    assert 0 < float(jnp.abs(half - plain).max()) < 0.05 * float(jnp.abs(plain).max())
