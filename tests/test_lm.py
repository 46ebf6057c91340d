import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from melody_jax.errors import UserError
from melody_jax.models import few_rows, functional, lm
from melody_jax.models.lm import LMConfig
from melody_jax.training.stages.lm import LMStage

CONFIG = dataclasses.replace(lm.TINY, prefix_codes=32, semantic_vocab=48)
PARAMS = lm.init(CONFIG, jax.random.key(0))
KEYS = jax.vmap(jax.random.key)(jnp.arange(3))


def tokens(seed: int, batch: int, length: int = 20) -> tuple[jax.Array, jax.Array]:
    a, b = jax.random.split(jax.random.key(seed))
    shape = (batch, CONFIG.prefix_levels)
    return jax.random.randint(a, shape, 0, CONFIG.prefix_codes), jax.random.randint(
        b, (batch, length), 0, CONFIG.semantic_vocab
    )


def test_paper_size():
    shapes = jax.eval_shape(lambda key: lm.init(lm.PAPER, key), jax.random.key(0))
    total = functional.count(shapes)
    untied = total + 12 * 1024 * 1024 - 12 * 1024  # the paper's count has a head over the prefix ids too, and no nulls
    assert abs(untied / 429.97e6 - 1) < 1e-3


def test_mini_size():
    shapes = jax.eval_shape(lambda key: lm.init(LMConfig(), key), jax.random.key(0))
    assert functional.count(shapes["blocks"]) < 6e6


def test_causal():
    prefix, semantic = tokens(1, 2)
    before = lm.logits(PARAMS, CONFIG, prefix, semantic)
    assert before.shape == (2, 20, 48)
    after = lm.logits(PARAMS, CONFIG, prefix, semantic.at[:, 7].set((semantic[:, 7] + 1) % 48))
    np.testing.assert_array_equal(before[:, :8], after[:, :8])
    assert np.all(np.abs(before[:, 8:] - after[:, 8:]).max(-1) > 1e-4)


def test_no_gradient_from_later_tokens():
    prefix, _ = tokens(2, 1)
    distinct = jnp.arange(20)[None]

    def score(table):
        params = PARAMS | {"semantic": table}
        return lm.logits(params, CONFIG, prefix, distinct)[0, 7].sum()

    touched = np.abs(jax.grad(score)(PARAMS["semantic"])).sum(-1)
    assert np.all(touched[:7] > 0)
    assert np.all(touched[7:] == 0)


def test_prefix_levels():
    prefix, semantic = tokens(3, 2)
    other = prefix.at[:, 4:].set((prefix[:, 4:] + 1) % 32)
    levels = jnp.array([4, 4])
    np.testing.assert_array_equal(
        lm.logits(PARAMS, CONFIG, prefix, semantic, levels), lm.logits(PARAMS, CONFIG, other, semantic, levels)
    )
    assert np.abs(lm.logits(PARAMS, CONFIG, prefix, semantic) - lm.logits(PARAMS, CONFIG, other, semantic)).max() > 1e-3


@pytest.mark.parametrize("start", [0, 5])
def test_cached_equals_full(start):
    prefix, semantic = tokens(4, 2)
    full = lm.logits(PARAMS, CONFIG, prefix, semantic)
    blocks = functional.unstack(PARAMS["blocks"], CONFIG.layers)
    caches = [(jnp.zeros((4, 32, 40)), jnp.zeros((4, 40, 32)))] * CONFIG.layers
    embedded_prefix = lm.embed_prefix(PARAMS, CONFIG, prefix)
    heard = lm._nothing_heard(PARAMS, CONFIG, embedded_prefix, 20)
    embedded, weights, _ = lm._hear(PARAMS, CONFIG, semantic, embedded_prefix, 0, heard)
    weights = lm._before_any(weights)

    @jax.jit
    def step(x, position, caches, weights):
        x, caches = lm._cached(blocks, CONFIG, x, position, caches)
        return lm._head(PARAMS, CONFIG, x, weights, semantic)[:, 0], caches

    x = jnp.concatenate([embedded_prefix, embedded[:, :start]], axis=1)
    scores, caches = step(x, 0, caches, weights[:, :, start : start + 1])
    np.testing.assert_allclose(scores, full[:, start], atol=1e-4)
    for u in range(start + 1, 20):
        scores, caches = step(embedded[:, u - 1 : u], 11 + u, caches, weights[:, :, u : u + 1])
        np.testing.assert_allclose(scores, full[:, u], atol=1e-4)


def test_prefix_everywhere_reaches_each_token_without_attention():
    params = PARAMS | {"blocks": jax.tree.map(jnp.zeros_like, PARAMS["blocks"])}  # blocks that add nothing
    prefix, semantic = tokens(12, 1)
    other = (prefix + 1) % CONFIG.prefix_codes
    for everywhere in (True, False):
        config = dataclasses.replace(CONFIG, prefix_everywhere=everywhere)
        change = lm.logits(params, config, prefix, semantic) - lm.logits(params, config, other, semantic)
        assert (np.abs(change[:, 1:]).max(-1) > 1e-3).all() == everywhere  # token 0 is foretold by the prefix itself


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_greedy_is_argmax_of_full_forward(guidance_scale):
    prefix, _ = tokens(5, 2)
    drawn = lm.generate(PARAMS, CONFIG, prefix, KEYS[:2], 12, temperature=0.0, guidance_scale=guidance_scale)
    wanted = lm.logits(PARAMS, CONFIG, prefix, drawn)
    null = lm.logits(PARAMS, CONFIG, prefix, drawn, jnp.zeros(2, int))
    np.testing.assert_array_equal(drawn, jnp.argmax(null + guidance_scale * (wanted - null), axis=-1))


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_batch_independence_and_determinism(guidance_scale):
    prefix, semantic = tokens(6, 3)
    args = {"length": 16, "guidance_scale": guidance_scale}
    together = lm.generate(PARAMS, CONFIG, prefix, KEYS, given=semantic[:, :3], **args)
    again = lm.generate(PARAMS, CONFIG, prefix, KEYS, given=semantic[:, :3], **args)
    np.testing.assert_array_equal(together, again)
    np.testing.assert_array_equal(together[:, :3], semantic[:, :3])
    for i in range(3):
        row = slice(i, i + 1)
        alone = lm.generate(PARAMS, CONFIG, prefix[row], KEYS[row], given=semantic[row, :3], **args)
        np.testing.assert_array_equal(together[row], alone)
    assert len({tuple(row) for row in np.asarray(together[:, 3:])}) == 3


def test_given_tokens_change_nothing_that_was_drawn():
    prefix, _ = tokens(7, 1)
    whole = lm.generate(PARAMS, CONFIG, prefix, KEYS[:1], 16)
    rest = lm.generate(PARAMS, CONFIG, prefix, KEYS[:1], 16, given=whole[:, :9])
    np.testing.assert_array_equal(whole, rest)


def test_negative_prefix():
    prefix, _ = tokens(8, 1)
    negative, _ = tokens(9, 1)
    args = {"length": 16, "guidance_scale": 3.0}
    plain = lm.generate(PARAMS, CONFIG, prefix, KEYS[:1], **args)
    pushed = lm.generate(PARAMS, CONFIG, prefix, KEYS[:1], negative_prefix_tokens=negative, **args)
    cancelled = lm.generate(PARAMS, CONFIG, prefix, KEYS[:1], negative_prefix_tokens=prefix, **args)
    assert np.any(plain != pushed)
    np.testing.assert_array_equal(cancelled, lm.generate(PARAMS, CONFIG, prefix, KEYS[:1], 16))


def test_every_item_has_its_own_settings():
    prefix, semantic = tokens(11, 3)
    negative = jnp.stack([jnp.full_like(prefix[0], -1), *tokens(12, 2)[0]])
    settings = {
        "temperature": jnp.array([0.0, 1.0, 1.3]),
        "top_k": jnp.array([5, 1, 40]),
        "top_p": jnp.array([1.0, 0.9, 0.8]),
        "guidance_scale": jnp.array([2.0, 1.0, 3.0]),
        "negative_prefix_tokens": negative,
    }
    together = lm.generate(PARAMS, CONFIG, prefix, KEYS, 14, given=semantic[:, :2], **settings)
    turned = {name: jnp.roll(values, 1, axis=0) for name, values in settings.items()}
    others = [jnp.roll(values, 1, axis=0) for values in (prefix, KEYS, semantic[:, :2])]
    again = lm.generate(PARAMS, CONFIG, *others[:2], 14, given=others[2], **turned)
    np.testing.assert_array_equal(jnp.roll(together, 1, axis=0), again)
    null = settings | {"negative_prefix_tokens": jnp.full_like(prefix, -1)}
    explicit = lm.generate(PARAMS, CONFIG, prefix, KEYS, 14, given=semantic[:, :2], **null)
    del null["negative_prefix_tokens"]
    implied = lm.generate(PARAMS, CONFIG, prefix, KEYS, 14, given=semantic[:, :2], **null)
    np.testing.assert_array_equal(explicit, implied)
    np.testing.assert_array_equal(explicit[0], together[0])
    assert np.any(explicit[2] != together[2])


def test_a_draw_does_not_depend_on_how_many_are_looked_at():
    scores = jax.random.normal(jax.random.key(3), (64,))
    for key in jax.random.split(jax.random.key(4), 20):
        few, all_ = (lm.sample_token(key, scores, 1.0, 8, 1.0, candidates) for candidates in (8, 64))
        assert few == all_


def test_sampling_limits_and_frequencies():
    scores = jnp.log(jnp.array([0.1, 0.4, 0.05, 0.3, 0.15]))
    keys = jax.random.split(jax.random.key(0), 4000)

    def shares(temperature=1.0, top_k=5, top_p=1.0):
        drawn = jax.vmap(lambda key: lm.sample_token(key, scores, temperature, top_k, top_p))(keys)
        return np.bincount(np.asarray(drawn), minlength=5) / 4000

    np.testing.assert_allclose(shares(), [0.1, 0.4, 0.05, 0.3, 0.15], atol=0.03)
    np.testing.assert_allclose(shares(top_k=2), [0, 4 / 7, 0, 3 / 7, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.71), [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.69), [0, 4 / 7, 0, 3 / 7, 0], atol=0.03)
    np.testing.assert_array_equal(shares(top_p=0.01), [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(shares(temperature=0.0), [0, 1, 0, 0, 0])
    squared = np.array([0.1, 0.4, 0.05, 0.3, 0.15]) ** 2
    np.testing.assert_allclose(shares(temperature=0.5), squared / squared.sum(), atol=0.03)


def test_bad_input():
    prefix, semantic = tokens(10, 1)
    with pytest.raises(UserError, match="must exceed"):
        lm.generate(PARAMS, CONFIG, prefix, KEYS[:1], 20, given=semantic)
    with pytest.raises(UserError, match="needs 12"):
        lm.generate(PARAMS, CONFIG, prefix[:, :5], KEYS[:1], 20)
    with pytest.raises(UserError, match="heads"):
        lm.init(dataclasses.replace(CONFIG, heads=3), jax.random.key(0))


def batch(seed: int) -> dict[str, jax.Array]:
    """Tokens that count up from the first prefix token, by the second one's parity plus one."""
    prefix, _ = tokens(seed, 16)
    step = 1 + prefix[:, 1:2] % 2
    return {"prefix_tokens": prefix, "semantic_tokens": (prefix[:, :1] + step * jnp.arange(24)) % 48}


@pytest.mark.parametrize(("additions", "until_prefix_helps"), [(False, 50), (True, 100)])
def test_training_lowers_held_out_loss_and_uses_prefix(additions, until_prefix_helps):
    """As in the paper, and with what `mini` adds: twelve random embeddings on every token are noise for longer."""
    stage = LMStage(model=dataclasses.replace(CONFIG, prefix_everywhere=additions, recall=additions))
    params = stage.init(jax.random.key(0))
    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)
    evaluate = jax.jit(stage.evaluate)

    @jax.jit
    def update(params, state, step):
        key = jax.random.fold_in(jax.random.key(1), step)
        grads, metrics = stage.gradients(params, batch(step), key, step)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics

    first = evaluate(params, batch(10_000), jax.random.key(2))
    for step in range(50):
        params, state, metrics = update(params, state, step)
    assert evaluate(params, batch(10_000), jax.random.key(2))["loss"] < 0.5 * first["loss"]
    for step in range(50, until_prefix_helps):
        params, state, metrics = update(params, state, step)
    last = evaluate(params, batch(10_000), jax.random.key(2))
    assert np.isfinite(metrics["loss"])
    assert last["loss"] < 0.5 * first["loss"]
    assert last["loss_null_prefix"] > last["loss"]
    assert last["loss_opening_null_prefix"] > last["loss_opening"]
    assert 0 <= last["accuracy"] <= 1


def test_dropout_levels():
    stage = LMStage(model=CONFIG, prefix_dropout=0.2, level_dropout=0.5)
    levels = np.asarray(stage.draw_levels(jax.random.key(0), 8000))
    assert abs((levels == 0).mean() - 0.2) < 0.02
    assert abs((levels == 12).mean() - 0.8 * (0.5 + 0.5 / 12)) < 0.02
    assert set(levels) == set(range(13))


@pytest.mark.parametrize("rows", [1, 5])
def test_unrolled_and_scanned_draw_the_same(monkeypatch, rows):
    """A CPU's way of decoding, with its products of few and of many rows, and that of the other platforms."""
    monkeypatch.setattr(few_rows, "LARGE", 64 * 128)  # so that this small network has large matrices
    prefix, _ = tokens(11, rows)
    prefix = jnp.concatenate([lm.embed_prefix(PARAMS, CONFIG, p) for p in (prefix, jnp.full_like(prefix, -1))])
    keys, ones = jax.vmap(jax.random.key)(jnp.arange(rows)), jnp.ones(rows)
    known = jnp.full((rows, 16), -1).at[:, 9].set(5)
    arrays = (PARAMS, prefix, keys, jnp.full((rows, 2), 7), known, ones, 20 * ones, ones, 2 * ones)
    drawn = [jax.jit(partial(lm._decode, CONFIG, 16, 48, unrolled))(*arrays) for unrolled in (True, False)]
    np.testing.assert_array_equal(*drawn)
    np.testing.assert_array_equal(drawn[0][:, 9], 5)
    assert len(np.unique(drawn[0])) > 3
