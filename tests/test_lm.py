import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from melody_jax.errors import UserError
from melody_jax.models import functional, lm, lm_config
from melody_jax.models.lm_config import LMConfig
from melody_jax.training.stages.lm import LMStage

CONFIG = dataclasses.replace(lm_config.TINY, prefix_codes=32, semantic_vocab=48)
PARAMS = lm.init(CONFIG, jax.random.key(0))
KEYS = jax.vmap(jax.random.key)(jnp.arange(3))


def tokens(seed: int, batch: int, length: int = 20) -> tuple[jax.Array, jax.Array]:
    a, b = jax.random.split(jax.random.key(seed))
    shape = (batch, CONFIG.prefix_levels)
    return jax.random.randint(a, shape, 0, CONFIG.prefix_codes), jax.random.randint(
        b, (batch, length), 0, CONFIG.semantic_vocab
    )


def test_paper_size():
    shapes = jax.eval_shape(lambda key: lm.init(lm_config.PAPER, key), jax.random.key(0))
    total = functional.count(shapes)
    untied = (
        total + 12 * 1024 * 1024 - 12 * 1024
    )  # the paper's count has a head over the prefix ids too, and no nulls
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


def test_melodies_and_levels_are_dropped_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random keys that are derived in two ways from one key may be equal."""
    stage = LMStage(
        model=dataclasses.replace(lm_config.TINY, recall=False, melody_span=1), prefix_dropout=0.0
    )
    count = 4_000
    drawn: dict[str, Any] = {}

    def drop(melody: jax.Array, is_dropped: jax.Array, key: jax.Array) -> jax.Array:
        drawn["melody"] = np.asarray(is_dropped)
        return melody

    def log_probs(params: Any, batch: Any, history: Any, levels: jax.Array, key: Any) -> jax.Array:
        drawn["levels"] = np.asarray(levels)
        return jnp.zeros((count, 2, stage.model.semantic_vocab))

    monkeypatch.setattr("melody_jax.training.stages.lm.drop_melody", drop)
    monkeypatch.setattr(LMStage, "_log_probs", lambda self, *arguments: log_probs(*arguments))
    batch = {
        "semantic_tokens": jnp.zeros((count, 2), jnp.int32),
        "prefix_tokens": jnp.zeros((count, 12), jnp.int32),
        "melody": jnp.zeros((count, 2), jnp.int32),
    }
    stage.loss({}, batch, jax.random.key(0))
    is_short = drawn["levels"] < 12
    assert np.mean(drawn["melody"][is_short]) == pytest.approx(0.5, abs=0.06)
    assert np.mean(drawn["melody"][~is_short]) == pytest.approx(0.5, abs=0.06)


def test_prefix_levels():
    prefix, semantic = tokens(3, 2)
    other = prefix.at[:, 4:].set((prefix[:, 4:] + 1) % 32)
    levels = jnp.array([4, 4])
    np.testing.assert_array_equal(
        lm.logits(PARAMS, CONFIG, prefix, semantic, levels),
        lm.logits(PARAMS, CONFIG, other, semantic, levels),
    )
    assert (
        np.abs(lm.logits(PARAMS, CONFIG, prefix, semantic) - lm.logits(PARAMS, CONFIG, other, semantic)).max()
        > 1e-3
    )


def test_prefix_everywhere_reaches_each_token_without_attention():
    params = PARAMS | {"blocks": jax.tree.map(jnp.zeros_like, PARAMS["blocks"])}  # blocks that add nothing
    prefix, semantic = tokens(12, 1)
    other = (prefix + 1) % CONFIG.prefix_codes
    for everywhere in (True, False):
        config = dataclasses.replace(CONFIG, prefix_everywhere=everywhere)
        change = lm.logits(params, config, prefix, semantic) - lm.logits(params, config, other, semantic)
        assert (
            np.abs(change[:, 1:]).max(-1) > 1e-3
        ).all() == everywhere  # token 0 is predicted from the prefix alone


def test_bad_input():
    with pytest.raises(UserError, match="heads"):
        lm.init(dataclasses.replace(CONFIG, heads=3), jax.random.key(0))
    with pytest.raises(UserError, match="tokens_per_pass is 2"):
        dataclasses.replace(CONFIG, tokens_per_pass=2)


def test_pairs_are_causal_and_take_any_length():
    """Token u of a network with two tokens per pass depends on all tokens before u, including the first of its pair."""
    config = dataclasses.replace(CONFIG, recall=False, tokens_per_pass=2)
    params, (prefix, semantic) = lm.init(config, jax.random.key(1)), tokens(1, 2, 11)
    score = jax.jit(lambda semantic: lm.logits(params, config, prefix, semantic))
    before = score(semantic)
    assert before.shape == (2, 11, 48)
    for place in (6, 7):
        after = score(semantic.at[:, place].set((semantic[:, place] + 1) % 48))
        np.testing.assert_array_equal(before[:, : place + 1], after[:, : place + 1])
        assert np.all(np.abs(before[:, place + 1 :] - after[:, place + 1 :]).max(-1) > 1e-5)


def batch(seed: int) -> dict[str, jax.Array]:
    """Tokens that count up from the first prefix token, by the second one's parity plus one."""
    prefix, _ = tokens(seed, 16)
    step = 1 + prefix[:, 1:2] % 2
    return {"prefix_tokens": prefix, "semantic_tokens": (prefix[:, :1] + step * jnp.arange(24)) % 48}


@pytest.mark.parametrize(
    ("additions", "per_pass", "until_prefix_helps"), [(False, 1, 50), (False, 2, 100), (True, 1, 100)]
)
def test_training_lowers_held_out_loss_and_uses_prefix(additions, per_pass, until_prefix_helps):
    """The paper's form, pairs, and `mini`'s additions: there the prefix on every token is noise for longer."""
    model = dataclasses.replace(
        CONFIG, prefix_everywhere=additions, recall=additions, tokens_per_pass=per_pass
    )
    stage = LMStage(model=model)
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
