"""Classifier-free guidance and its rescaling."""

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import guidance


def test_guidance_is_linear():
    conditional, null = jax.random.normal(jax.random.key(0), (2, 1, 4, 2))
    np.testing.assert_array_equal(guidance.guide(conditional, null, 1.0), conditional)
    np.testing.assert_array_equal(guidance.guide(conditional, null, 0.0), null)
    np.testing.assert_allclose(
        guidance.guide(conditional, null, 2.5), null + 2.5 * (conditional - null), atol=1e-6
    )


def test_rescaled_guidance_has_the_spread_of_the_conditional_velocity() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    conditional = jax.random.normal(keys[0], (2, 12, 4)) + 1
    guided = conditional + 3 * jax.random.normal(keys[1], (2, 12, 4))
    everywhere = jnp.ones((2, 12), bool)
    np.testing.assert_array_equal(guidance.rescale(guided, conditional, 0.0, everywhere), guided)
    full = guidance.rescale(guided, conditional, 1.0, everywhere)
    np.testing.assert_allclose(full.std(axis=(1, 2)), conditional.std(axis=(1, 2)), rtol=1e-5)
    half = guidance.rescale(guided, conditional, jnp.array([0.5, 1.0])[:, None, None], everywhere)
    np.testing.assert_allclose(half[0], (guided[0] + full[0]) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(half[1], full[1], rtol=1e-6)


def test_rescaled_guidance_ignores_the_context() -> None:
    conditional, guided = (
        jax.random.normal(jax.random.key(0), (2, 2, 12, 4)) * jnp.array([1, 3])[:, None, None, None]
    )
    is_new = jnp.arange(12) >= 6
    rescaled = guidance.rescale(guided, conditional, 0.7, is_new)
    loud = jnp.where(is_new[:, None], guided, 100.0)
    np.testing.assert_array_equal(guidance.rescale(loud, conditional, 0.7, is_new)[:, 6:], rescaled[:, 6:])
    new_only = guidance.rescale(guided[:, 6:], conditional[:, 6:], 0.7, is_new[6:])
    np.testing.assert_allclose(rescaled[:, 6:], new_only, rtol=1e-5)
    nothing_new = guidance.rescale(guided, conditional, 0.7, jnp.zeros(12, bool))
    assert np.isfinite(nothing_new).all()
