"""Discriminators: convolutions against lax.conv, shapes, what a period sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.errors import UserError
from melody_jax.models import discriminators
from melody_jax.models.discriminators import DiscriminatorConfig
from melody_jax.models.functional import count

TINY = discriminators.TINY


@pytest.mark.parametrize(("length", "width", "stride"), [(30, 5, 3), (31, 5, 3), (32, 5, 1), (33, 3, 2)])
def test_conv1d_matches_lax(length: int, width: int, stride: int) -> None:
    keys = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(keys[0], (2, length, 4)), jax.random.normal(keys[1], (width, 4, 6))
    left = (width - stride + 1) // 2
    right = (-(-length // stride) - 1) * stride + width - left - length
    theirs = jax.lax.conv_general_dilated(
        x, kernel, (stride,), [(left, right)], dimension_numbers=("NWC", "WIO", "NWC")
    )
    np.testing.assert_allclose(discriminators._conv1d(x, kernel, stride), theirs, atol=1e-4)


def test_conv2d_matches_lax() -> None:
    keys = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(keys[0], (2, 7, 32, 4)), jax.random.normal(keys[1], (3, 3, 4, 6))
    theirs = jax.lax.conv_general_dilated(
        x, kernel, (1, 2), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(discriminators._conv2d(x, kernel, 2), theirs, atol=1e-4)


def test_shapes() -> None:
    params = discriminators.init(TINY, jax.random.key(0))
    judgements = discriminators.judge(params, TINY, jax.random.normal(jax.random.key(1), (2, 4800)))
    assert len(judgements) == len(params) == 3
    assert [len(hidden) for _, hidden in judgements] == [3, 3, 2]
    assert judgements[0][0].shape == (2 * 2, 4800 // 2 // 9 + 1)
    assert judgements[2][0].shape == (2, 4800 // 120, 256 // 8 // 2)


def test_period_columns_are_separate() -> None:
    """A change of samples 1, 4, 7... reaches the second row of the period-3 discriminator alone."""
    params = discriminators.init(TINY, jax.random.key(0))
    audio = np.array(jax.random.normal(jax.random.key(1), (1, 1800)))
    before = discriminators.judge(params, TINY, jnp.asarray(audio))[1][0]
    audio[:, 1::3] += 1
    after = discriminators.judge(params, TINY, jnp.asarray(audio))[1][0]
    assert [bool(np.any(before[row] != after[row])) for row in range(3)] == [False, True, False]


def test_mini_is_narrow() -> None:
    shapes = jax.eval_shape(lambda key: discriminators.init(DiscriminatorConfig(), key), jax.random.key(0))
    assert count(shapes) < 1e6


def test_too_few_layers_are_told() -> None:
    with pytest.raises(UserError, match="two layers"):
        DiscriminatorConfig(period_widths=(8,))
