"""Dual-path diffusion: the sheet's algebra, what depends on what, sizes, and that it learns."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from melody_jax import diffusion
from melody_jax.errors import UserError
from melody_jax.models import denoiser, functional, segments
from melody_jax.models.dpd import DPD, MINI, PAPER, PAPER_ALIGNED, TINY, DPDConfig
from melody_jax.models.functional import count
from melody_jax.models.layers import rotary
from melody_jax.models.roformer import rotate
from melody_jax.training.stages.dpd import DPDStage

SMALL = dataclasses.replace(TINY, frames=24, blocks=1, segment=4)


def inputs(config, batch=3, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    tokens = config.frames // config.frames_per_token
    return {
        "noisy": jax.random.normal(keys[0], (batch, config.frames, config.latent_dim)),
        "angle": diffusion.sample_angles(keys[1], batch, config.frames, config.chunks),
        "semantic_tokens": jax.random.randint(keys[2], (batch, tokens), 0, config.semantic_tokens),
        "prefix_tokens": jax.random.randint(keys[3], (batch, config.prefix_levels), 0, config.prefix_codes),
    }


@partial(jax.jit, static_argnums=0)
def _velocity(config, params, given):
    return denoiser.velocity(params, config, has_condition=jnp.ones(len(given["noisy"]), bool), **given)


def run(config, params, **changes):
    return np.asarray(_velocity(config, params, inputs(config) | changes))


@pytest.fixture(scope="module")
def params():
    return denoiser.init(SMALL, jax.random.key(5))


@pytest.mark.parametrize(("frames", "length"), [(80, 8), (77, 8), (3, 8), (256, 16), (2500, 64)])
@pytest.mark.parametrize("overlap", [1, 2, 4])
def test_overlap_add_of_segments_is_the_input_so_often(frames, length, overlap):
    x = jax.random.normal(jax.random.key(0), (2, frames, 3))
    sheet = segments.segment(x, length, overlap)
    count, hop = segments.segment_count(frames, length, overlap), length // overlap
    assert sheet.shape == (length, 2, count, 3)
    np.testing.assert_array_equal(segments.overlap_add(sheet, frames, overlap), overlap * x)
    np.testing.assert_array_equal(sheet[hop:, :, :-1], sheet[:-hop, :, 1:])
    inside = segments.segment(jnp.ones((1, frames, 1)), length, overlap)
    assert (inside.max(axis=0) == 1).all(), "a segment of nothing but padding"


def test_paper_sheet_has_80_segments_and_published_merge_widths():
    assert segments.segment_count(2500, 64) == 80
    widths = [segments.merge_width(i, 8) for i in range(8)]
    assert widths == [1, 2, 4, 8, 8, 4, 2, 1]
    sheet = jnp.zeros((64, 1, 5, 2))
    merged = [segments.merge(sheet, n) for n in widths]
    assert [len(m) for m in merged] == [64, 32, 16, 8, 8, 16, 32, 64]
    assert all(segments.repeat(m, n, 64).shape == sheet.shape for m, n in zip(merged, widths, strict=True))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_merge_is_the_mean_of_overlapping_windows(n):
    sheet = np.random.default_rng(0).normal(size=(10, 2, 3)).astype(np.float32)
    windows = [sheet[i : i + 2 * n] for i in range(0, 10, n)]
    plain = np.stack([w.sum(axis=0) / (2 * n) for w in windows])
    np.testing.assert_allclose(segments.merge(jnp.asarray(sheet), n), plain, atol=1e-6)


@pytest.mark.parametrize("overlap", [1, 2, 4])
def test_positions_lie_at_the_centres_of_what_is_averaged(overlap):
    """The frames' own centres in token units, run through the same windows, give the positions."""
    frames, length, rate = 40, 8, 2
    hop = length // overlap
    padded = np.arange(hop - length, 100) + 0.5
    for n in (1, 2):
        for s in (0, 3):
            inside = padded[s * hop :][:length]
            centres = [inside[j : j + 2 * n].mean() / rate for j in range(0, length, n)]
            count = segments.segment_count(frames, length, overlap)
            positions = segments.column_positions(count, length, n, rate, overlap)
            np.testing.assert_allclose(positions[:, s], centres)
            assert segments.segment_positions(s + 1, length, rate, overlap)[s] == pytest.approx(
                inside.mean() / rate
            )


def test_rotation_before_the_split_is_the_rotary_embedding():
    x, positions = jax.random.normal(jax.random.key(0), (2, 5, 12)), np.arange(5) * 1.5
    expected = rotary(x.reshape(2, 5, 3, 4).transpose(0, 2, 1, 3), jnp.asarray(positions))
    np.testing.assert_allclose(
        rotate(x, positions[None], 3).reshape(2, 5, 3, 4).transpose(0, 2, 1, 3), expected, atol=1e-5
    )


def test_paper_has_its_parameters_and_shapes():
    config = PAPER
    params = jax.eval_shape(lambda key: denoiser.init(config, key), jax.random.key(0))
    assert count(params) == pytest.approx(295.6e6, rel=2e-4)
    assert dataclasses.replace(PAPER_ALIGNED, frames=config.frames) == config
    given = jax.eval_shape(lambda: inputs(config, batch=2))
    result = jax.eval_shape(lambda p, g: denoiser.velocity(p, config, has_condition=1, **g), params, given)
    assert result.shape == (2, 2500, 16)


def test_mini_has_its_parameters():
    mini = jax.eval_shape(lambda key: denoiser.init(MINI, key), jax.random.key(0))
    assert count(mini) == pytest.approx(11.0e6, rel=1e-3)


def test_mini_fits_its_budget():
    assert denoiser.flops(MINI) <= 8.7e9


def test_blocks_have_string_keys(params):
    assert sorted(params["blocks"]) == ["0"]


def test_cross_attention_depends_on_the_order_of_tokens(params):
    """A permutation keeps the pooled condition, so any change comes through cross-attention."""
    tokens = inputs(SMALL)["semantic_tokens"]
    assert np.abs(run(SMALL, params, semantic_tokens=tokens[:, ::-1]) - run(SMALL, params)).max() > 1e-5


def test_modulation_depends_on_the_tokens(params):
    """With cross-attention removed at its output, the tokens act through the pooled condition only."""
    params = jax.tree.map(lambda leaf: leaf, params)  # new dicts, same arrays
    for layer in params["blocks"]["0"]["coarse"]["layers"].values():
        layer["cross"]["out"]["kernel"] = jnp.zeros_like(layer["cross"]["out"]["kernel"])
    tokens = inputs(SMALL)["semantic_tokens"]
    base = run(SMALL, params)
    assert (
        np.abs(run(SMALL, params, semantic_tokens=inputs(SMALL, seed=9)["semantic_tokens"]) - base).max()
        > 1e-5
    )
    np.testing.assert_allclose(run(SMALL, params, semantic_tokens=tokens[:, ::-1]), base, atol=1e-6)


def test_absent_prefix_is_all_levels_absent_and_off_means_unused(params):
    absent = jnp.full((3, 12), -1)
    np.testing.assert_array_equal(
        run(SMALL, params, prefix_tokens=absent), run(SMALL, params, prefix_tokens=None)
    )
    off = dataclasses.replace(SMALL, prefix_conditioning=False)
    params = {name: leaf for name, leaf in params.items() if not name.startswith("prefix")}
    base, changed = (
        run(off, params, prefix_tokens=inputs(off, seed=seed)["prefix_tokens"]) for seed in (0, 9)
    )
    np.testing.assert_array_equal(base, changed)


@pytest.mark.parametrize(
    "options",
    [{"frame_clock": True}, {"overlap": 1}, {"overlap": 4}],
    ids=str,
)
def test_options_without_parameters_change_the_output(params, options):
    result = run(dataclasses.replace(SMALL, **options), params)
    assert np.abs(result - run(SMALL, params)).max() > 1e-6


@pytest.mark.parametrize(
    "fields",
    [
        {"film": "none", "aligned_tokens": True, "frames_per_token": 2, "sru_hidden": 8},
        {"roformer_layers": 2, "prefix_conditioning": False},
    ],
    ids=["no-film", "two-layers"],
)
def test_options_with_parameters_run(fields):
    config = dataclasses.replace(SMALL, **fields)
    result = run(config, denoiser.init(config, jax.random.key(5)))
    assert result.shape == (3, 24, 8)
    assert np.isfinite(result).all()


def test_aligned_tokens_reach_their_own_frames_first(params):
    """Without cross-attention and modulation, a token moves the segments that its frames lie in and no others."""
    config = dataclasses.replace(SMALL, aligned_tokens=True, blocks=0)
    aligned = denoiser.init(config, jax.random.key(5))
    tokens = inputs(config)["semantic_tokens"]
    changed = run(config, aligned, semantic_tokens=tokens.at[:, 7].add(1)) - run(config, aligned)
    moved = (np.abs(changed) > 1e-6).any(axis=(0, 2))
    np.testing.assert_array_equal(np.flatnonzero(moved), [7])


def test_the_ends_of_the_angle_embedding_are_distinct(params):
    swapped = params | {"angle_ends": params["angle_ends"][::-1]}
    assert np.abs(run(SMALL, params) - run(SMALL, swapped)).max() > 1e-5


def test_lower_precision_computes_nearly_the_same(params):
    base, half = run(SMALL, params), run(dataclasses.replace(SMALL, dtype="bfloat16"), params)
    assert half.dtype == np.float32
    np.testing.assert_allclose(
        half, base, atol=0.1 * np.abs(base).max()
    )  # bfloat16 keeps 8 bits through 20 layers


def stream_without_branches(config: DPDConfig) -> tuple[np.ndarray, np.ndarray]:
    """White noise (K, B, S, W), and what four blocks make of it when their layers add nothing."""
    config = dataclasses.replace(config, blocks=4)

    def silenced(path, leaf):
        names = [part.key for part in path]
        adds = names[-2:] == ["out", "kernel"] or names[-4:-2] == ["film", "out"]
        return jnp.zeros_like(leaf) if "blocks" in names and adds else leaf

    @jax.jit
    def run(sheet):
        params = jax.tree_util.tree_map_with_path(silenced, denoiser.init(config, jax.random.key(5)))
        network = functional.bind(DPD, config, params=params)
        given = inputs(config)
        cond = network.embed(given["angle"], given["semantic_tokens"], 3, given["prefix_tokens"], None)
        for block in network.blocks:
            sheet = block(sheet, network._modulation(cond), cond)
        return sheet

    count = segments.segment_count(config.frames, config.segment, config.overlap)
    sheet = jax.random.normal(jax.random.key(0), (config.segment, 3, count, config.width))
    return np.asarray(sheet), np.asarray(run(sheet))


def test_blocks_that_add_nothing_keep_the_stream():
    """Only the printed layout adds a blurred copy of the stream to itself."""
    for fields in ({"residual": "pre_norm"}, {"residual": "pre_norm", "film": "adaln"}):
        sheet, result = stream_without_branches(dataclasses.replace(TINY, **fields))
        np.testing.assert_array_equal(result, sheet)
    similarity = {}
    for residual in ("printed", "post_norm"):
        sheet, result = stream_without_branches(dataclasses.replace(TINY, residual=residual))
        norms = np.linalg.norm(sheet, axis=-1) * np.linalg.norm(result, axis=-1)
        similarity[residual] = ((sheet * result).sum(-1) / norms).mean()
    assert similarity["post_norm"] == pytest.approx(1, abs=1e-5)
    assert similarity["printed"] < 0.8


def test_a_fresh_adaln_block_is_the_identity():
    """Its gates are zero, so the angle acts through the input alone, and on its own frame alone."""
    config = dataclasses.replace(SMALL, residual="pre_norm", film="adaln")
    params = denoiser.init(config, jax.random.key(5))
    angle = inputs(config)["angle"]
    changed = run(config, params, angle=angle.at[:, 7].add(0.1)) - run(config, params)
    np.testing.assert_array_equal(np.flatnonzero((changed != 0).any(axis=(0, 2))), [7])


@pytest.mark.parametrize(
    "field",
    [
        {"segment": 5},
        {"overlap": 3},
        {"overlap": 0},
        {"heads": 3},
        {"film": "loud"},
        {"fine": "gru"},
        {"residual": "none"},
        {"film": "adaln"},
    ],
)
def test_impossible_configs_are_refused(field):
    with pytest.raises(UserError):
        dataclasses.replace(TINY, **field)


def task(key, batch):
    """Latents that are a fixed function of the tokens and, faintly, of the prefix."""
    table = jax.random.normal(jax.random.key(77), (8, TINY.latent_dim))
    tokens = jax.random.randint(key, (batch, TINY.frames), 0, 8)
    prefix = jnp.zeros((batch, TINY.prefix_levels), jnp.int32)
    return {"latents": table[tokens], "semantic_tokens": tokens, "prefix_tokens": prefix}


def test_fifty_steps_lower_the_held_out_loss():
    stage = DPDStage(model=TINY, shared_angle=0.3, clean_prefix=0.2, token_corruption=0.03)
    params = stage.init(jax.random.key(0))
    optimizer = optax.adamw(3e-3)
    evaluate = jax.jit(lambda p: stage.evaluate(p, task(jax.random.key(1), 16), jax.random.key(2)))

    @jax.jit
    def step(params, state, key):
        grads, metrics = stage.gradients(params, task(key, 16), key, jnp.int32(0))
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, metrics["loss"]

    before, state = evaluate(params), optimizer.init(params)
    for key in jax.random.split(jax.random.key(3), 50):
        params, state, _ = step(params, state, key)
    after = evaluate(params)
    assert set(after) == {"loss", "loss_null", "loss_at_0.2", "loss_at_0.6", "loss_at_1.0", "loss_at_1.4"}
    assert after["loss"] < 0.8 * before["loss"]
    assert jax.tree.map(float, evaluate(params)) == jax.tree.map(float, after)


def test_perturbation_comes_in_the_configured_shares():
    stage = DPDStage(model=TINY, token_corruption=0.25, prefix_dropout=0.2, prefix_level_dropout=0.1)
    batch = {"semantic_tokens": jnp.full((200, 80), -5), "prefix_tokens": jnp.full((4000, 12), 3)}
    tokens, prefix = (np.asarray(x) for x in stage._perturb(batch, jax.random.key(0)))
    assert (tokens != -5).mean() == pytest.approx(0.25, abs=0.02)
    assert (prefix == -1).all(axis=1).mean() == pytest.approx(0.2, abs=0.02)
    assert (prefix == -1).mean() == pytest.approx(0.2 + 0.8 * 0.1, abs=0.02)
    same = DPDStage(model=TINY, prefix_dropout=0.0, prefix_level_dropout=0.0)._perturb(
        batch, jax.random.key(0)
    )
    np.testing.assert_array_equal(same[0], batch["semantic_tokens"])
    np.testing.assert_array_equal(same[1], batch["prefix_tokens"])


def test_clean_frames_are_left_out_of_the_loss(params):
    """A network that answers zero leaves the mean square of the target over the noisy frames, remat or not."""
    stage = DPDStage(model=dataclasses.replace(SMALL, remat="blocks"), clean_prefix=1.0)
    batch = {name: x for name, x in inputs(SMALL, batch=64).items() if name.endswith("tokens")}
    batch["latents"] = jnp.zeros((64, SMALL.frames, SMALL.latent_dim))
    zero = {"model": jax.tree.map(jnp.zeros_like, params)}
    _, metrics = jax.jit(lambda p: stage.gradients(p, batch, jax.random.key(0), jnp.int32(0)))(zero)
    keys = jax.random.split(jax.random.key(0), 4)
    angle = diffusion.sample_angles(keys[1], 64, SMALL.frames, SMALL.chunks, 0.0, 1.0)
    noise = jax.random.normal(keys[3], batch["latents"].shape)
    expected = (jnp.cos(angle)[..., None] * noise)[angle > 0] ** 2
    assert metrics["loss"] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert metrics["weight"] == (angle > 0).sum() < angle.size
