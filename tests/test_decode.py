"""Decoding part by part equals decoding at once, with every codec, wherever blocks and windows end."""

from functools import partial

import jax
import numpy as np
import pytest

from melody_jax import loudness
from melody_jax.errors import UserError
from melody_jax.models import vae
from melody_jax.models.hifigan import HiFiGANConfig
from melody_jax.models.vae import VAEConfig
from melody_jax.sampling import decode
from melody_jax.sampling.windows import latents_to_wave

HIFIGAN = VAEConfig(
    latent_width=8,
    latent_clip=1.0,
    codec=HiFiGANConfig(
        encoder_rates=(2, 3),
        encoder_channels=(4, 8),
        encoder_kernels=(5, 7),
        decoder_rates=(3, 2),
        decoder_channels=(8, 6),
        decoder_kernels=(7, 5),
        residual_kernels=(3,),
        dilations=(1, 3),
    ),
)


class Case:
    """A codec with random parameters, and latents of two items whose peaks exceed the limiter's ceiling."""

    def __init__(self, config: VAEConfig) -> None:
        self.config, self.margin = config, decode.context(config)
        self.window = 2 * self.margin + 5
        rng, shapes = np.random.default_rng(0), jax.eval_shape(partial(vae.init, config), jax.random.key(0))
        self.params = jax.tree.map(
            lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes
        )
        if config is not HIFIGAN:
            self.params["decoder"]["ends"]["out"]["bias"] += 5.0
        self.latents = 3 * rng.standard_normal((2, 3 * self.window, 8)).astype(np.float32)

    def decode_at_once(self, latents: np.ndarray) -> np.ndarray:
        wave = np.asarray(latents_to_wave(self.params, self.config, latents, np.int32(0)))
        return np.stack([loudness.peak_limit(item) for item in wave])

    def parts(self, latents: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
        blocks = np.split(latents, cuts, axis=1)
        return list(decode.decode(self.params, self.config, blocks, self.window))


@pytest.fixture(
    scope="module",
    params=[vae.TINY, vae.TINY_TWO_WINDOWS, HIFIGAN],
    ids=["magnitudes", "two windows", "hifigan"],
)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_parts_equal_decoding_at_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    length = 3 * case.window
    expected = case.decode_at_once(case.latents)
    if case.config is not HIFIGAN:  # the other codec's decoder ends in a tanh
        raw = np.asarray(latents_to_wave(case.params, case.config, case.latents, np.int32(0)))
        assert np.abs(raw - expected).max() > 0.1  # the limiter is at work
    shapes, plain = set(), decode.latents_to_wave
    monkeypatch.setattr(
        decode, "latents_to_wave", lambda p, c, z, *rest: (shapes.add(z.shape), plain(p, c, z, *rest))[1]
    )
    for cuts in ([], [case.window], [1, 2, length - 1], list(range(7, length, 7))):
        parts = case.parts(case.latents, cuts)
        assert len(parts) == -(-2 * case.window // 5) + 1
        np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=1e-5)
    assert shapes == {(2, case.window, 8)}


def test_a_window_or_less_is_decoded_once(case: Case) -> None:
    for length in (3, case.window):
        latents = case.latents[:, :length]
        (only,) = case.parts(latents, [1])
        np.testing.assert_allclose(only, case.decode_at_once(latents), atol=1e-5)


def test_a_part_comes_as_soon_as_it_can(case: Case) -> None:
    """One latent beyond the window shows that the window is not the last one."""
    taken = []
    blocks = (taken.append(i) or case.latents[:, i : i + 1] for i in range(2 * case.window))
    first = next(decode.decode(case.params, case.config, blocks, case.window))
    assert first.shape == (2, (case.window - case.margin) * case.config.hop)
    assert len(taken) == case.window + 1


def test_a_window_of_context_only_is_refused(case: Case) -> None:
    with pytest.raises(UserError, match=f"window of {2 * case.margin} latents is all context"):
        next(decode.decode(case.params, case.config, [case.latents], 2 * case.margin))
    assert list(decode.decode(case.params, case.config, [], case.window)) == []
