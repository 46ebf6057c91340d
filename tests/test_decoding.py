import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jitted import lm

from melody_jax.control_tokens import ControlVocabulary
from melody_jax.errors import UserError
from melody_jax.models import decoding, functional, lm_config, platform
from melody_jax.models.decoding import Inputs, SamplingParams
from melody_jax.models.lm_config import Condition, LMConfig

CONFIG = dataclasses.replace(lm_config.TINY, prefix_codes=32, semantic_vocab=48)
PARAMS = lm.init(CONFIG, jax.random.key(0))
PAIRS = dataclasses.replace(CONFIG, recall=False, tokens_per_pass=2)
NETWORKS = {1: (PARAMS, CONFIG), 2: (lm.init(PAIRS, jax.random.key(1)), PAIRS)}
"""Tokens per pass -> network."""
KEYS = jax.vmap(jax.random.key)(jnp.arange(3))


def generate(*arguments, **settings):
    return decoding.generate(*arguments, **settings).tokens


def tokens(seed: int, batch: int, length: int = 20) -> tuple[jax.Array, jax.Array]:
    a, b = jax.random.split(jax.random.key(seed))
    shape = (batch, CONFIG.prefix_levels)
    return jax.random.randint(a, shape, 0, CONFIG.prefix_codes), jax.random.randint(
        b, (batch, length), 0, CONFIG.semantic_vocab
    )


@pytest.mark.parametrize("start", [0, 5])
def test_cached_equals_full(start):
    prefix, semantic = tokens(4, 2)
    full = lm.logits(PARAMS, CONFIG, prefix, semantic)
    network = functional.bind(lm.LM, CONFIG, params=PARAMS)
    blocks = functional.unstack(network.blocks, CONFIG.layers)
    caches = [(jnp.zeros((4, 32, 40)), jnp.zeros((4, 40, 32)))] * CONFIG.layers
    embedded_prefix = network.embed_prefix(prefix)
    state = network.init_recall(embedded_prefix, 20)
    embedded, weights, _ = network.embed_with_recall(semantic, embedded_prefix, 0, state)
    weights = lm.pad_prefix(weights)

    @jax.jit
    def step(x, position, caches, weights):
        x, caches = decoding.run_cached(blocks, x, position, caches)
        return network.predict(x, weights, semantic)[:, 0], caches

    x = jnp.concatenate([embedded_prefix, embedded[:, :start]], axis=1)
    scores, caches = step(x, 0, caches, weights[:, :, start : start + 1])
    np.testing.assert_allclose(scores, full[:, start], atol=1e-4)
    for u in range(start + 1, 20):
        scores, caches = step(embedded[:, u - 1 : u], 11 + u, caches, weights[:, :, u : u + 1])
        np.testing.assert_allclose(scores, full[:, u], atol=1e-4)


@pytest.mark.parametrize(("per_pass", "guidance_scale"), [(1, 1.0), (1, 2.0), (2, 2.0)])
def test_greedy_is_argmax_of_full_forward(per_pass, guidance_scale):
    params, config = NETWORKS[per_pass]
    prefix, _ = tokens(5, 2)
    drawn = generate(params, config, prefix, KEYS[:2], 12, temperature=0.0, guidance_scale=guidance_scale)
    wanted = lm.logits(params, config, prefix, drawn)
    null = lm.logits(params, config, prefix, drawn, jnp.zeros(2, int))
    np.testing.assert_array_equal(drawn, jnp.argmax(null + guidance_scale * (wanted - null), axis=-1))


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_controls_have_a_scale_of_their_own(guidance_scale):
    """Greedy tokens are the argmax of three full passes: the prompt, null, and the prompt without its controls."""
    config = dataclasses.replace(CONFIG, controls=ControlVocabulary(tempos=5, genres=("house", "jazz")))
    params = lm.init(config, jax.random.key(0))
    prompt = jnp.concatenate([tokens(4, 2)[0], jnp.array([[1, 2, 0, 1, 1], [-1] * 5])], axis=1)
    uncontrolled = prompt.at[:, 12:].set(-1)
    args = {"temperature": 0.0, "guidance_scale": guidance_scale, "control_scale": 4.0}
    drawn = generate(params, config, prompt, KEYS[:2], 12, **args)
    wanted, null, other = (
        lm.logits(params, config, prefix, drawn)
        for prefix in (prompt, jnp.full_like(prompt, -1), uncontrolled)
    )
    logits = null + guidance_scale * (wanted - null) + 3 * (wanted - other)
    np.testing.assert_array_equal(drawn, jnp.argmax(logits, axis=-1))
    plain = generate(params, config, prompt, KEYS[:2], 12, **args | {"control_scale": 1.0})
    np.testing.assert_array_equal(drawn[1], plain[1])
    assert not np.array_equal(drawn[0], plain[0])


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_batch_independence_and_determinism(guidance_scale):
    prefix, semantic = tokens(6, 3)
    args = {"length": 16, "guidance_scale": guidance_scale}
    together = generate(PARAMS, CONFIG, prefix, KEYS, primer=semantic[:, :3], **args)
    again = generate(PARAMS, CONFIG, prefix, KEYS, primer=semantic[:, :3], **args)
    np.testing.assert_array_equal(together, again)
    np.testing.assert_array_equal(together[:, :3], semantic[:, :3])
    for i in range(3):
        row = slice(i, i + 1)
        alone = generate(PARAMS, CONFIG, prefix[row], KEYS[row], primer=semantic[row, :3], **args)
        np.testing.assert_array_equal(together[row], alone)
    assert len({tuple(row) for row in np.asarray(together[:, 3:])}) == 3


@pytest.mark.parametrize("per_pass", [1, 2])
def test_a_primer_changes_nothing_that_was_drawn(per_pass):
    """The numbers of primer tokens and of all tokens are odd."""
    draw = partial(generate, *NETWORKS[per_pass], tokens(7, 1)[0], KEYS[:1], 15)
    drawn = draw()
    assert drawn.shape == (1, 15)
    np.testing.assert_array_equal(drawn, draw(primer=drawn[:, :9]))


def test_negative_prefix():
    prefix, _ = tokens(8, 1)
    negative, _ = tokens(9, 1)
    args = {"length": 16, "guidance_scale": 3.0}
    plain = generate(PARAMS, CONFIG, prefix, KEYS[:1], **args)
    pushed = generate(PARAMS, CONFIG, prefix, KEYS[:1], negative_prefix_tokens=negative, **args)
    cancelled = generate(PARAMS, CONFIG, prefix, KEYS[:1], negative_prefix_tokens=prefix, **args)
    assert np.any(plain != pushed)
    np.testing.assert_array_equal(cancelled, generate(PARAMS, CONFIG, prefix, KEYS[:1], 16))


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
    together = generate(PARAMS, CONFIG, prefix, KEYS, 14, primer=semantic[:, :2], **settings)
    turned = {name: jnp.roll(values, 1, axis=0) for name, values in settings.items()}
    others = [jnp.roll(values, 1, axis=0) for values in (prefix, KEYS, semantic[:, :2])]
    again = generate(PARAMS, CONFIG, *others[:2], 14, primer=others[2], **turned)
    np.testing.assert_array_equal(jnp.roll(together, 1, axis=0), again)
    null = settings | {"negative_prefix_tokens": jnp.full_like(prefix, -1)}
    explicit = generate(PARAMS, CONFIG, prefix, KEYS, 14, primer=semantic[:, :2], **null)
    del null["negative_prefix_tokens"]
    implied = generate(PARAMS, CONFIG, prefix, KEYS, 14, primer=semantic[:, :2], **null)
    np.testing.assert_array_equal(explicit, implied)
    np.testing.assert_array_equal(explicit[0], together[0])
    assert np.any(explicit[2] != together[2])


def test_a_draw_does_not_depend_on_how_many_are_looked_at():
    scores = jax.random.normal(jax.random.key(3), (64,))
    for key in jax.random.split(jax.random.key(4), 20):
        few, all_ = (decoding.sample_token(key, scores, 1.0, 8, 1.0, candidates) for candidates in (8, 64))
        assert few == all_


def test_sampling_limits_and_frequencies():
    scores = jnp.log(jnp.array([0.1, 0.4, 0.05, 0.3, 0.15]))
    keys = jax.random.split(jax.random.key(0), 4000)

    def shares(temperature=1.0, top_k=5, top_p=1.0):
        drawn = jax.vmap(lambda key: decoding.sample_token(key, scores, temperature, top_k, top_p))(keys)
        return np.bincount(np.asarray(drawn), minlength=5) / 4000

    np.testing.assert_allclose(shares(), [0.1, 0.4, 0.05, 0.3, 0.15], atol=0.03)
    np.testing.assert_allclose(shares(top_k=2), [0, 4 / 7, 0, 3 / 7, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.71), [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.69), [0, 4 / 7, 0, 3 / 7, 0], atol=0.03)
    np.testing.assert_array_equal(shares(top_p=0.01), [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(shares(temperature=0.0), [0, 1, 0, 0, 0])
    squared = np.array([0.1, 0.4, 0.05, 0.3, 0.15]) ** 2
    np.testing.assert_allclose(shares(temperature=0.5), squared / squared.sum(), atol=0.03)


@pytest.mark.parametrize(("rows", "per_pass"), [(1, 2), (5, 1)])
def test_unrolled_and_scanned_draw_the_same(monkeypatch, rows, per_pass):
    """Decoding on a CPU, with products of few and of many rows, equals decoding on other platforms."""
    params, config = NETWORKS[per_pass]
    monkeypatch.setattr(platform, "MATVEC_SIZE", 64 * 128)  # so that this small network has large matrices
    prefix, _ = tokens(11, rows)
    prefix = jnp.concatenate(
        [lm.embed_prefix(params, config, p) for p in (prefix, jnp.full_like(prefix, -1))]
    )
    keys, ones = jax.vmap(jax.random.key)(jnp.arange(rows)), jnp.ones(rows)
    fixed = jnp.full((rows, 16), -1).at[:, 9].set(5)
    sampling = SamplingParams(ones, 20 * ones, ones, 2 * ones, ones)
    inputs = Inputs(prefix, keys, jnp.full((rows, 2), 7), fixed, sampling)
    drawn = [
        jax.jit(partial(decoding.decode, config, 16, 48, unrolled))(params, inputs).tokens
        for unrolled in (True, False)
    ]
    np.testing.assert_array_equal(*drawn)
    np.testing.assert_array_equal(drawn[0][:, 9], 5)
    assert len(np.unique(drawn[0])) > 3


def test_bad_input():
    prefix, semantic = tokens(10, 1)
    with pytest.raises(UserError, match="must exceed"):
        generate(PARAMS, CONFIG, prefix, KEYS[:1], 20, primer=semantic)
    with pytest.raises(UserError, match="needs 12"):
        generate(PARAMS, CONFIG, prefix[:, :5], KEYS[:1], 20)


ACOUSTIC = dataclasses.replace(
    CONFIG,
    prefix_levels=2,
    prefix_everywhere=False,
    recall=False,
    semantic_vocab=16,
    code_levels=3,
    condition=Condition(length=8, ids=20, levels=2),
)
"""A coarse acoustic model: codes of 3 levels after 2 prefix tokens and 4 frames of 2 levels."""


def prompts(batch: int, config: LMConfig = ACOUSTIC) -> jax.Array:
    """Prefix tokens and a condition (B, P + M)."""
    rng = np.random.default_rng(0)
    assert config.condition is not None
    prefix = rng.integers(0, config.prefix_codes, (batch, config.prompt_length))
    condition = rng.integers(0, config.condition.ids, (batch, config.condition.length))
    return jnp.asarray(np.concatenate([prefix, condition], axis=1), jnp.int32)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_acoustic_codes_are_those_of_the_full_forward(guidance_scale):
    """Greedy decoding, level by level, also with the null prefix, under which the condition stays."""
    params = lm.init(ACOUSTIC, jax.random.key(0))
    prompt = prompts(2)
    drawn = generate(params, ACOUSTIC, prompt, KEYS[:2], 12, temperature=0.0, guidance_scale=guidance_scale)
    assert int(drawn.max()) < 16
    wanted = lm.logits(params, ACOUSTIC, prompt, drawn)
    null = lm.logits(params, ACOUSTIC, prompt, drawn, jnp.zeros(2, int))
    np.testing.assert_array_equal(drawn, jnp.argmax(null + guidance_scale * (wanted - null), axis=-1))
    alone = generate(
        params, ACOUSTIC, prompt[1:], KEYS[1:2], 12, temperature=0.0, guidance_scale=guidance_scale
    )
    np.testing.assert_array_equal(alone[0], drawn[1])


def test_an_acoustic_model_without_a_prefix():
    """The fine model of AudioLM: codes after coarser codes alone."""
    config = dataclasses.replace(ACOUSTIC, prefix_levels=0)
    params = lm.init(config, jax.random.key(0))
    assert "prefix" not in params
    drawn = generate(params, config, prompts(2, config), KEYS[:2], 12, primer=jnp.zeros((2, 3), int))
    assert drawn.shape == (2, 12)
    assert not drawn[:, :3].any()


def test_without_a_prefix_a_sequence_begins_with_a_learned_embedding():
    """The semantic model of AudioLM."""
    config = dataclasses.replace(CONFIG, prefix_levels=0)
    params = lm.init(config, jax.random.key(0))
    assert params["beginning"].shape == (1, config.width)
    nothing = jnp.zeros((2, 0), int)
    drawn = generate(params, config, nothing, KEYS[:2], 12, temperature=0.0)
    np.testing.assert_array_equal(drawn, jnp.argmax(lm.logits(params, config, nothing, drawn), axis=-1))
    moved = params | {"beginning": -params["beginning"]}
    assert (generate(moved, config, nothing, KEYS[:2], 12, temperature=0.0) != drawn).any()


@pytest.mark.parametrize(("per_pass", "primer", "passes"), [(1, 0, 12), (1, 5, 7), (2, 0, 6), (2, 4, 4)])
def test_passes_are_counted(per_pass, primer, passes):
    """One per token that is drawn, or per group; guidance's second branch is in the same pass."""
    params, config = NETWORKS[per_pass]
    prefix, semantic = tokens(8, 2)
    settings = {"primer": semantic[:, :primer], "guidance_scale": 2.0}
    assert decoding.generate(params, config, prefix, KEYS[:2], 12, **settings).passes == passes


def test_each_level_has_ids_of_its_own():
    """Every code is seen by later ones as a code of its level, and so is the condition."""
    params = lm.init(ACOUSTIC, jax.random.key(0))
    prompt = prompts(1)
    codes = jnp.zeros((1, 6), int)
    touched = jax.grad(lambda tables: lm.logits(params | tables, ACOUSTIC, prompt, codes)[0, 5].sum())(
        {name: params[name] for name in ("semantic", "condition")}
    )
    used = np.flatnonzero(np.abs(touched["semantic"]).sum(-1))
    np.testing.assert_array_equal(used, [0, 16, 32])
    used = np.flatnonzero(np.abs(touched["condition"]).sum(-1))
    expected = np.unique(np.asarray(prompt[0, 2:]) + np.arange(8) % 2 * 20)
    np.testing.assert_array_equal(used, expected)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"recall": True}, "code_levels is 3: it must be 1, or more with recall False"),
        ({"code_levels": 0}, "code_levels is 0"),
    ],
)
def test_impossible_acoustic_models_are_refused(wrong, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(ACOUSTIC, **wrong)
    with pytest.raises(UserError, match="7 tokens are no whole number of frames of 2 levels"):
        Condition(length=7, ids=4, levels=2)
    with pytest.raises(UserError, match="prefix_levels is 0: control tokens follow prefix tokens"):
        dataclasses.replace(CONFIG, prefix_levels=0, controls=ControlVocabulary(genres=()))
    with pytest.raises(UserError, match="the prefix has 2 tokens: this model needs 10"):
        generate({}, ACOUSTIC, prompts(1)[:, :2], KEYS[:1], 3)
