from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from melody_jax.errors import UserError
from melody_jax.models import nearest_code, rvq
from melody_jax.training.fit_kmeans import fit_kmeans, fit_residual


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(20, 8))[rng.integers(0, 20, 3000)] * 3 + rng.normal(size=(3000, 8))).astype(
        np.float32
    )


def test_assign_agrees_with_sklearn(vectors):
    reference = KMeans(16, n_init=1, random_state=0, max_iter=5).fit(vectors)
    centroids = jnp.asarray(reference.cluster_centers_)
    codes = nearest_code.assign(jnp.asarray(vectors), centroids)
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, reference.predict(vectors))
    np.testing.assert_array_equal(
        nearest_code.assign(vectors[:12].reshape(3, 4, 8), centroids), codes[:12].reshape(3, 4)
    )


def test_assign_in_chunks_is_the_same(vectors, monkeypatch):
    centroids = jnp.asarray(vectors[:10])
    unchunked = nearest_code.assign(jnp.asarray(vectors[:1000]), centroids)
    monkeypatch.setattr(nearest_code, "CHUNK", 300)
    np.testing.assert_array_equal(nearest_code.assign(jnp.asarray(vectors[:1000]), centroids), unchunked)


def test_fit_is_as_good_as_sklearn_and_deterministic(vectors):
    centroids = fit_kmeans(jnp.asarray(vectors), 20, jax.random.key(0))
    codes = nearest_code.assign(jnp.asarray(vectors), centroids)
    inertia = float(jnp.sum((vectors - centroids[codes]) ** 2))
    best = KMeans(20, n_init=5, random_state=0).fit(vectors).inertia_
    assert inertia < 1.15 * best
    assert float(nearest_code.usage(codes, 20)[0]) == 1.0
    np.testing.assert_array_equal(centroids, fit_kmeans(jnp.asarray(vectors), 20, jax.random.key(0)))


def test_fit_reseeds_empty_clusters_and_refuses_bad_input():
    x = jnp.concatenate([jnp.zeros((500, 2)), jnp.eye(2) * 100, jnp.ones((1, 2)) * 50])
    centroids = fit_kmeans(x, 4, jax.random.key(3))
    assert len(set(nearest_code.assign(x, centroids).tolist())) == 4
    with pytest.raises(UserError, match="needs at least 4 vectors"):
        fit_kmeans(x[:3], 4, jax.random.key(0))
    with pytest.raises(UserError, match="finite"):
        fit_kmeans(x.at[0, 0].set(jnp.nan), 4, jax.random.key(0))


def test_residual_shrinks_level_by_level(vectors):
    books = fit_residual(jnp.asarray(vectors), 6, 16, jax.random.key(1), iterations=10)
    codes = rvq.quantise(books, jnp.asarray(vectors))
    assert books.shape == (6, 16, 8)
    assert codes.shape == (3000, 6)
    errors = [float(jnp.mean((vectors - rvq.dequantise(books, codes, levels)) ** 2)) for levels in range(7)]
    assert all(after < 0.85 * before for before, after in pairwise(errors))
    assert float(rvq.usage(codes, 16).min()) == 1.0


def test_quantise_is_the_greedy_loop_and_batch_independent(vectors):
    books = jax.random.normal(jax.random.key(0), (3, 5, 8))
    codes = rvq.quantise(books, jnp.asarray(vectors[:7]))
    for x, item_codes in zip(vectors[:7], codes, strict=True):
        for book, code in zip(np.asarray(books), item_codes, strict=True):
            assert int(np.argmin(((x - book) ** 2).sum(-1))) == int(code)
            x = x - book[code]
    np.testing.assert_array_equal(rvq.quantise(books, jnp.asarray(vectors[3])), codes[3])
