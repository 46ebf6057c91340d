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


def test_scores_are_not_rounded_before_the_softmax() -> None:
    """Scores of about 1,000 with differences below the spacing of bfloat16 there, which is 4."""
    q = jnp.array([[[32.0, 1.0]]], jnp.bfloat16)
    k = jnp.array([[[32.0, 1.0], [32.0, 0.0]]], jnp.bfloat16)
    v = jnp.array([[[1.0], [0.0]]], jnp.bfloat16)
    expected = jax.nn.sigmoid(2**-0.5)
    assert abs(float(platform.attend(q, k, v)[0, 0, 0]) - expected) < 0.005
    cache = (k.swapaxes(1, 2), v)
    empty = jax.tree.map(jnp.zeros_like, platform.init_cache(1, 1, 3, 2, "bfloat16"))
    keys = empty[0].at[..., :2].set(cache[0])
    values = empty[1].at[:, :2].set(jnp.concatenate([v, v], axis=-1))
    bias = jnp.array([[0.0, 0.0, -1e9]])
    attended, _ = platform.attend_cached(q[None], k[None, :, :1], q[None], bias, (keys, values), 2)
    assert abs(float(attended[0, 0, 0, 0]) - expected) < 0.005
