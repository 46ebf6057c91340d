"""Music longer than a window: old frames stay, new ones depend on item and chunk, tokens and latents stay aligned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.errors import UserError
from melody_jax.models import denoiser, dpd, lm, lm_config
from melody_jax.models.dpd import DPDConfig
from melody_jax.sampling import windows
from melody_jax.sampling.item_controls import Controls, item_keys, split_seeds
from melody_jax.sampling.windows import SamplerConfig, Window

CONTROLS = Controls(
    prefix_tokens=jax.random.randint(jax.random.key(2), (2, 12), 0, 8),
    negative_prefix_tokens=jnp.full((2, 12), -1),
    seeds=split_seeds([3, 4]),
    candidate=jnp.zeros(2, jnp.int32),
    temperature=jnp.ones(2),
    top_k=jnp.full(2, 250),
    top_p=jnp.ones(2),
    lm_guidance_scale=jnp.ones(2),
    control_scale=jnp.ones(2),
    guidance_scale=jnp.ones(2),
    guidance_rescale=jnp.zeros(2),
)
SECOND = jax.tree.map(lambda rows: rows[1:], CONTROLS)


def sampler(frames: int, per_token: int, **changes: object) -> SamplerConfig:
    small = dataclasses.replace(
        dpd.TINY, frames=frames, frames_per_token=per_token, semantic_tokens=64, prefix_codes=8
    )
    return SamplerConfig(lm=lm_config.TINY, dpd=small, steps=2, guided=False, **changes)  # type: ignore[arg-type]


CONFIG = sampler(20, 2)
"""10 tokens in 4 chunks of 5 frames: two and a half tokens each, as 62.5 of the paper's 250."""


@pytest.fixture(scope="module")
def params() -> dict:
    """Random networks whose outputs depend on every input."""
    keys = jax.random.split(jax.random.key(0))
    params = {"lm": lm.init(CONFIG.lm, keys[0]), "dpd": denoiser.init(CONFIG.dpd, keys[1])}
    return jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(keys[0], leaf.shape), params)


@pytest.fixture(scope="module")
def window() -> Window:
    keys = jax.random.split(jax.random.key(1), 3)
    return Window(
        jax.random.randint(keys[1], (2, 10), 0, 64),
        jax.random.normal(keys[2], (2, 20, 8)),
    )


def advance(
    params: dict, config: SamplerConfig, window: Window, number: int, controls: Controls = CONTROLS
) -> Window:
    shift = config.chunk_tokens(number)
    return windows.next_window(params, config, controls, window, shift, jnp.int32(number))


def test_tokens_and_latents_stay_aligned() -> None:
    for size, moves in ((dpd.PAPER, [62, 63, 62, 63]), (dpd.PAPER_ALIGNED, [64] * 4)):
        config = SamplerConfig(lm=lm_config.PAPER, dpd=size)
        assert [config.chunk_tokens(number) for number in range(1, 5)] == moves
        literal = dataclasses.replace(config, literal_chunks=True)
        assert [literal.chunk_tokens(number) for number in range(1, 5)] == [max(moves)] * 4
        assert config.chunk_frames * 4 == size.frames
    with pytest.raises(UserError, match="21 frames do not divide into 4 chunks"):
        _ = sampler(21, 1).chunk_frames


def test_old_frames_stay(params: dict, window: Window) -> None:
    following = advance(params, CONFIG, window, 1)
    np.testing.assert_array_equal(following.semantic_tokens[:, :8], window.semantic_tokens[:, 2:])
    np.testing.assert_array_equal(following.latents[:, :15], window.latents[:, 5:])
    assert following.semantic_tokens.shape == window.semantic_tokens.shape
    assert following.latents.shape == window.latents.shape
    assert np.isfinite(following.latents).all()


def test_new_frames_depend_on_item_and_chunk(params: dict, window: Window) -> None:
    batch, repeated, later_chunk = (advance(params, CONFIG, window, number) for number in (1, 1, 3))
    np.testing.assert_array_equal(batch.latents, repeated.latents)
    assert not np.array_equal(batch.latents[:, 15:], later_chunk.latents[:, 15:])
    second = Window(*(part[1:] for part in window))
    single = advance(params, CONFIG, second, 1, SECOND)
    np.testing.assert_array_equal(batch.semantic_tokens[1:], single.semantic_tokens)
    np.testing.assert_allclose(batch.latents[1:], single.latents, atol=1e-5)
    other_seed = advance(params, CONFIG, second, 1, SECOND._replace(seeds=CONTROLS.seeds[:1]))
    assert not np.allclose(other_seed.latents[:, 15:], single.latents[:, 15:])


def test_the_past_matters(params: dict, window: Window) -> None:
    changed = window._replace(latents=window.latents.at[:, 5:].add(1.0))
    assert not np.allclose(
        advance(params, CONFIG, window, 1).latents[:, 15:],
        advance(params, CONFIG, changed, 1).latents[:, 15:],
    )


def test_the_literal_chunk_moves_only_the_tokens(params: dict, window: Window) -> None:
    literal = dataclasses.replace(CONFIG, literal_chunks=True)
    aligned, shifted = (advance(params, config, window, 1) for config in (CONFIG, literal))
    np.testing.assert_array_equal(shifted.semantic_tokens[:, :7], window.semantic_tokens[:, 3:])
    np.testing.assert_array_equal(shifted.latents[:, :15], aligned.latents[:, :15])
    assert not np.array_equal(shifted.latents[:, 15:], aligned.latents[:, 15:])
    np.testing.assert_array_equal(  # the second chunk moves by three either way
        advance(params, literal, window, 2).latents, advance(params, CONFIG, window, 2).latents
    )


def test_default_sizes_divide() -> None:
    for size in (DPDConfig(), dpd.PAPER_ALIGNED, dpd.MINI, dpd.TINY):
        assert size.frames % size.chunks == 0


def test_given_tokens_are_guided_from_themselves_to_the_prompt(params: dict, window: Window) -> None:
    config = dataclasses.replace(CONFIG, guided=True, keeps_tokens=True, steps=1)
    guided = CONTROLS._replace(guidance_scale=jnp.full(2, 4.0))
    unprompted = guided._replace(prefix_tokens=jnp.full((2, 12), -1))
    keys = item_keys(CONTROLS)
    draw = jax.jit(windows.tokens_to_latents, static_argnums=1)

    def latents(config: SamplerConfig, controls: Controls) -> np.ndarray:
        return np.asarray(draw(params["dpd"], config, controls, window.semantic_tokens, keys))

    alone = dataclasses.replace(config, guided=False)
    with_prompt, without = (latents(alone, controls) for controls in (guided, unprompted))
    assert np.abs(with_prompt - without).max() > 1e-3
    np.testing.assert_allclose(latents(config, guided), without + 4 * (with_prompt - without), atol=1e-4)
    np.testing.assert_allclose(latents(config, unprompted), without, atol=1e-5)
