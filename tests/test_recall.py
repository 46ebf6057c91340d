"""Recall: its weights by the formula, token by token as all at once, and what it finds."""

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


def look_back(
    params: Params, rows: jax.Array, places: int = LENGTH, pieces: tuple[int, ...] = ()
) -> np.ndarray:
    """Weights (B, H, N, T), with the rows heard in pieces that start at the given times."""
    recall = functional.bind(Recall, WIDTH, "float32", params=params)
    heard, weights = recall.begin(PREFIX, places), []
    for start, end in zip((0, *pieces), (*pieces, rows.shape[1]), strict=True):
        found, heard = recall.look_back(rows[:, start:end], start, heard)
        weights.append(found)
    return np.concatenate(weights, axis=2)


@pytest.mark.parametrize("places", [LENGTH, LAGS + 40])
def test_weights_are_those_of_the_formula(params, places):
    recall = functional.bind(Recall, WIDTH, "float32", params=params)
    prior = np.asarray(recall.begin(PREFIX, places)[0])
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
    np.testing.assert_allclose(look_back(params, ROWS, places), expected, atol=1e-5)


def test_token_by_token_as_all_at_once(params):
    together = look_back(params, ROWS)
    np.testing.assert_allclose(look_back(params, ROWS, pieces=tuple(range(1, LENGTH))), together, atol=1e-6)
    np.testing.assert_allclose(look_back(params, ROWS, pieces=(0, 17)), together, atol=1e-6)


def test_a_phrase_heard_before_is_found_and_nothing_later_matters():
    fresh = functional.init(Recall, WIDTH, "float32", key=jax.random.key(2))
    phrase = ROWS[:, :20]
    rows = jnp.concatenate([phrase, ROWS[:, 20:25], phrase, ROWS[:, 45:]], axis=1)
    weights = look_back(fresh, rows)
    for t in range(30, 45):  # five tokens into the phrase's return at 25
        np.testing.assert_array_equal(weights[:, 0, t].argmax(axis=-1), t - 24)
        assert (weights[:, 0, t, t - 24] > 0.9).all()
    changed = look_back(fresh, rows.at[:, 40:].set(0))
    np.testing.assert_array_equal(changed[:, :, :40], weights[:, :, :40])
    assert (np.triu(weights[0, 0], 1) == 0).all()


def test_the_prefix_names_a_lag():
    fresh = functional.init(Recall, WIDTH, "float32", key=jax.random.key(2))
    bias = jnp.zeros((len(MEMORY), LAGS)).at[:, 12 - 1].set(50.0)
    weights = look_back(fresh | {"lags": fresh["lags"] | {"bias": bias.reshape(-1)}}, ROWS)
    for t in (11, 30, 59):
        np.testing.assert_allclose(weights[:, :, t, t + 1 - 12], 1.0, atol=1e-4)


def test_shares_leave_the_rest_to_the_network(params):
    recall = functional.bind(Recall, WIDTH, "float32", params=params)
    weights = look_back(params, ROWS)
    copied = np.asarray(recall.point(ROWS, weights))
    own = 1 / (1 + len(MEMORY) * np.exp(-2))  # a fresh layer's bias
    np.testing.assert_allclose(copied.sum(axis=-1), 1 - own, atol=1e-5)
    np.testing.assert_allclose(copied / (1 - own), weights.mean(axis=1), atol=1e-5)
