"""Recall: weights equal the formula, token by token equals all at once, and repeated phrases are found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.models import functional
from melody_jax.models.functional import Params
from melody_jax.models.recall import LAGS, MEMORY, SHARPNESS, Recall

WIDTH, LENGTH = 32, 60
ROWS = jax.random.normal(jax.random.key(0), (2, LENGTH, WIDTH))
PREFIX = jax.random.normal(jax.random.key(1), (2, 12, WIDTH))


@pytest.fixture(scope="module")
def params() -> Params:
    """A layer with a prior over lags; a fresh one has none."""
    fresh = functional.init(Recall, WIDTH, "float32", key=jax.random.key(2))
    kernel = jax.random.normal(jax.random.key(3), fresh["lags"]["kernel"].shape)
    return fresh | {"lags": fresh["lags"] | {"kernel": kernel * WIDTH**-0.5}}


def recall_weights(
    params: Params, rows: jax.Array, places: int = LENGTH, pieces: tuple[int, ...] = ()
) -> np.ndarray:
    """Weights (B, H, N, T), with the rows given in pieces that start at these times."""
    recall = functional.bind(Recall, WIDTH, "float32", params=params)
    state = recall.init_state(PREFIX, places)
    weights = []
    for start, end in zip((0, *pieces), (*pieces, rows.shape[1]), strict=True):
        piece, state = recall.attend(rows[:, start:end], start, state)
        weights.append(piece)
    return np.concatenate(weights, axis=2)


@pytest.mark.parametrize("places", [LENGTH, LAGS + 40])
def test_weights_are_those_of_the_formula(params, places):
    recall = functional.bind(Recall, WIDTH, "float32", params=params)
    prior = np.asarray(recall.init_state(PREFIX, places).prior)
    unit = np.asarray(ROWS) / np.linalg.norm(ROWS, axis=-1, keepdims=True)
    expected = np.zeros((2, len(MEMORY), LENGTH, places))
    for item in range(2):
        for head, (memory, sharpness) in enumerate(zip(MEMORY, SHARPNESS, strict=True)):
            alignment = np.zeros((LENGTH, LENGTH))
            for t in range(LENGTH):
                for j in range(1, LENGTH):
                    before = alignment[t - 1, j - 1] if t else 0
                    alignment[t, j] = (1 - memory) * unit[item, t] @ unit[item, j - 1] + memory * before
                score = sharpness * alignment[t, : t + 1] + prior[item, head, t - np.arange(t + 1)]
                expected[item, head, t, : t + 1] = np.exp(score) / np.exp(score).sum()
    np.testing.assert_allclose(recall_weights(params, ROWS, places), expected, atol=1e-5)


def test_token_by_token_as_all_at_once(params):
    together = recall_weights(params, ROWS)
    np.testing.assert_allclose(
        recall_weights(params, ROWS, pieces=tuple(range(1, LENGTH))), together, atol=1e-6
    )
    np.testing.assert_allclose(recall_weights(params, ROWS, pieces=(0, 17)), together, atol=1e-6)


def test_a_repeated_phrase_is_found_and_later_tokens_do_not_matter():
    fresh = functional.init(Recall, WIDTH, "float32", key=jax.random.key(2))
    phrase = ROWS[:, :20]
    rows = jnp.concatenate([phrase, ROWS[:, 20:25], phrase, ROWS[:, 45:]], axis=1)
    weights = recall_weights(fresh, rows)
    for t in range(30, 45):  # five tokens into the phrase's return at 25
        np.testing.assert_array_equal(weights[:, 0, t].argmax(axis=-1), t - 24)
        assert (weights[:, 0, t, t - 24] > 0.9).all()
    changed = recall_weights(fresh, rows.at[:, 40:].set(0))
    np.testing.assert_array_equal(changed[:, :, :40], weights[:, :, :40])
    assert (np.triu(weights[0, 0], 1) == 0).all()


def test_the_prefix_names_a_lag():
    fresh = functional.init(Recall, WIDTH, "float32", key=jax.random.key(2))
    bias = jnp.zeros((len(MEMORY), LAGS)).at[:, 12 - 1].set(50.0)
    weights = recall_weights(fresh | {"lags": fresh["lags"] | {"bias": bias.reshape(-1)}}, ROWS)
    for t in (11, 30, 59):
        np.testing.assert_allclose(weights[:, :, t, t + 1 - 12], 1.0, atol=1e-4)


def test_shares_leave_the_rest_to_the_network(params):
    recall = functional.bind(Recall, WIDTH, "float32", params=params)
    weights = recall_weights(params, ROWS)
    copied = np.asarray(recall.copy_probs(ROWS, jnp.asarray(weights)))
    network_share = 1 / (1 + len(MEMORY) * np.exp(-2))  # a fresh layer's bias
    np.testing.assert_allclose(copied.sum(axis=-1), 1 - network_share, atol=1e-5)
    np.testing.assert_allclose(copied / (1 - network_share), weights.mean(axis=1), atol=1e-5)
