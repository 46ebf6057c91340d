"""The product of few rows equals an ordinary product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.models import platform


@pytest.mark.parametrize("rows", [1, 2, platform.MATVEC_ROWS, platform.MATVEC_ROWS + 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("large", [24 * 40, 24 * 40 + 1])
def test_product(monkeypatch, rows, dtype, large):
    monkeypatch.setattr(platform, "MATVEC_SIZE", large)
    rng = np.random.default_rng(rows)
    x = jnp.asarray(rng.standard_normal((1, rows, 24)), dtype)
    kernel = jnp.asarray(rng.standard_normal((24, 40)), dtype)
    stored = platform.matvec_layout({"kernel": kernel, "scale": kernel[0]})
    assert stored["kernel"].shape == ((40, 24) if large == kernel.size else (24, 40))
    np.testing.assert_array_equal(stored["scale"], kernel[0])
    y = jax.jit(platform.matvec)(x, stored["kernel"])
    assert y.shape == (1, rows, 40)
    assert y.dtype == dtype
    expected = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(
        np.asarray(y, np.float64), expected, rtol=0, atol=1e-5 if dtype == "float32" else 0.2
    )
