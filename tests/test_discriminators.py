"""Discriminators: convolutions against lax.conv, shapes, what a period sees."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.errors import UserError
from melody_jax.models import discriminators
from melody_jax.models.discriminators import DiscriminatorConfig, SpectrogramDiscriminator
from melody_jax.models.functional import bind, count

TINY = discriminators.TINY


@pytest.mark.parametrize(("length", "width", "stride"), [(30, 5, 3), (31, 5, 3), (32, 5, 1), (33, 3, 2)])
def test_conv1d_matches_lax(length: int, width: int, stride: int) -> None:
    keys = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(keys[0], (2, length, 4)), jax.random.normal(keys[1], (width, 4, 6))
    left = width // 2
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
    outputs = discriminators.discriminate(params, TINY, jax.random.normal(jax.random.key(1), (2, 4800)))
    assert len(outputs) == len(params) == 3
    assert [len(hidden) for _, hidden in outputs] == [3, 3, 2]
    assert outputs[0][0].shape == (2 * 2, 4800 // 2 // 9 + 1)
    assert outputs[2][0].shape == (2, 4800 // 120, 257 // 8 // 2 + 1)


def test_period_columns_are_separate() -> None:
    """A change of samples 1, 4, 7... reaches the second row of the period-3 discriminator alone."""
    params = discriminators.init(TINY, jax.random.key(0))
    audio = np.array(jax.random.normal(jax.random.key(1), (1, 1800)))
    before = discriminators.discriminate(params, TINY, jnp.asarray(audio))[1][0]
    audio[:, 1::3] += 1
    after = discriminators.discriminate(params, TINY, jnp.asarray(audio))[1][0]
    assert [bool(np.any(before[row] != after[row])) for row in range(3)] == [False, True, False]


def test_the_rest_of_a_period_is_reflected() -> None:
    params = discriminators.init(TINY, jax.random.key(0))
    audio = jax.random.normal(jax.random.key(1), (1, 1801))
    padded = jnp.concatenate([audio, audio[:, -2:-4:-1]], axis=1)
    compared = (discriminators.discriminate(params, TINY, x)[1] for x in (audio, padded))
    jax.tree.map(np.testing.assert_array_equal, *compared)


def test_bands_have_separate_layers() -> None:
    config = replace(TINY, bands=((0.0, 0.25), (0.25, 1.0)), complex_spectra=True)
    params = discriminators.init(config, jax.random.key(0))
    assert params["resolution_512"]["bands"]["1"]["0"]["kernel"].shape == (3, 16, 2, 4)
    module = bind(SpectrogramDiscriminator, config, config.resolutions[0], params=params["resolution_512"])
    image = module.spectrogram(jax.random.normal(jax.random.key(1), (1, 4800)))
    logits, hidden = module.discriminate(image)
    assert logits.shape == (1, 40, 4 + 13)  # 64 and 193 bins over 16
    changed = module.discriminate(image.at[:, :, 64:].set(0))[1]
    same = [np.array_equal(a, b) for a, b in zip(hidden, changed, strict=True)]
    assert same == [True, True, False, False]


def test_sizes() -> None:
    shapes = jax.eval_shape(lambda key: discriminators.init(DiscriminatorConfig(), key), jax.random.key(0))
    assert count(shapes) < 1e6
    shapes = jax.eval_shape(lambda key: discriminators.init(discriminators.PAPER, key), jax.random.key(0))
    periods = sum(count(tree) for name, tree in shapes.items() if name.startswith("period"))
    assert periods == 5 * 8_218_433  # HiFi-GAN's multi-period discriminator


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="at least two"):
        DiscriminatorConfig(period_widths=(8,))
    with pytest.raises(UserError, match=r"band \(0.5, 0.2\)"):
        DiscriminatorConfig(bands=((0.5, 0.2),))
