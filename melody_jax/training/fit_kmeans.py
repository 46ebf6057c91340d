"""Fitting k-means and the residual quantiser: jitted Lloyd iterations, deterministic from a key.

Seeding is k-means++ (Arthur and Vassilvitskii, 2007) on a sample. After every iteration an empty cluster moves to a
data point, drawn with probability proportional to its squared distance from its centroid, so that no code stays dead.
N vectors, C clusters, D width.
"""

from functools import partial

import jax
import jax.numpy as jnp

from melody_jax.errors import UserError
from melody_jax.models import nearest_code

SEEDING_POINTS_PER_CLUSTER = 32
SEEDING_CANDIDATES = 4


@partial(jax.jit, static_argnames="clusters")
def _seed(x: jax.Array, clusters: int, key: jax.Array) -> jax.Array:
    """Greedy k-means++: of a few points drawn by squared distance, the one that minimises the total distance."""
    squared = jnp.sum(x * x, axis=-1)

    def body(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centroids, nearest = carry
        log_odds = jnp.log(nearest + 1e-30)
        candidates = x[
            jax.random.categorical(jax.random.fold_in(key, i), log_odds, shape=(SEEDING_CANDIDATES,))
        ]
        distances = jnp.maximum(nearest_code.distances(x, candidates) + squared[:, None], 0.0)
        remaining = jnp.minimum(nearest[:, None], distances)
        best = jnp.argmin(remaining.sum(0))
        return centroids.at[i].set(candidates[best]), remaining[:, best]

    first = x[jax.random.randint(key, (), 0, x.shape[0])]
    start = (jnp.zeros((clusters, x.shape[1])).at[0].set(first), jnp.sum((x - first) ** 2, axis=-1))
    return jax.lax.fori_loop(1, clusters, body, start)[0]


def _assign_and_sum(
    x: jax.Array, weight: jax.Array, centroids: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums (C, D) and counts (C,) by nearest centroid, and each point's squared distance (N,), chunk by chunk."""
    clusters, width = centroids.shape

    def chunk(carry: tuple[jax.Array, jax.Array], rows: tuple[jax.Array, jax.Array]):
        points, weights = rows
        table = nearest_code.distances(points, centroids)
        # one cluster per point, even between equal centroids: otherwise a duplicate would never be empty
        member = jax.nn.one_hot(jnp.argmin(table, axis=-1), clusters) * weights[:, None]
        squared = jnp.min(table, axis=-1) + jnp.sum(points * points, axis=-1)
        return (carry[0] + member.T @ points, carry[1] + member.sum(0)), jnp.maximum(squared, 0.0) * weights

    zero = (jnp.zeros((clusters, width)), jnp.zeros(clusters))
    size = min(nearest_code.CHUNK, x.shape[0])
    (sums, counts), squared = jax.lax.scan(
        chunk, zero, (x.reshape(-1, size, width), weight.reshape(-1, size))
    )
    return sums, counts, squared.reshape(-1)


@partial(jax.jit, static_argnames="iterations")
def _lloyd(
    x: jax.Array, weight: jax.Array, centroids: jax.Array, key: jax.Array, iterations: int
) -> jax.Array:
    clusters = centroids.shape[0]

    def step(i: jax.Array, centroids: jax.Array) -> jax.Array:
        sums, counts, squared = _assign_and_sum(x, weight, centroids)
        gumbel = jax.random.gumbel(jax.random.fold_in(key, i), squared.shape)
        drawn = jax.lax.top_k(jnp.log(squared + 1e-30) + gumbel, clusters)[1]
        empty = counts == 0
        candidates = x[drawn[jnp.maximum(jnp.cumsum(empty) - 1, 0)]]
        return jnp.where(empty[:, None], candidates, sums / jnp.maximum(counts, 1.0)[:, None])

    return jax.lax.fori_loop(0, iterations, step, centroids)


def fit_kmeans(x: jax.Array, clusters: int, key: jax.Array, iterations: int = 25) -> jax.Array:
    """Centroids (clusters, D) float32 of x (N, D). Raises `UserError` if N < clusters or x is not finite."""
    x = jnp.asarray(x, jnp.float32)
    if x.ndim != 2 or x.shape[0] < clusters:
        raise UserError(
            f"k-means with {clusters} clusters needs at least {clusters} vectors, got an array of {x.shape}"
        )
    if not bool(jnp.isfinite(x).all()):
        raise UserError("k-means needs finite vectors, got NaN or infinity")
    sample_key, seed_key, step_key = jax.random.split(key, 3)
    sample = x
    if x.shape[0] > clusters * SEEDING_POINTS_PER_CLUSTER:
        picked = jax.random.choice(
            sample_key, x.shape[0], (clusters * SEEDING_POINTS_PER_CLUSTER,), replace=False
        )
        sample = x[picked]
    centroids = _seed(sample, clusters, seed_key)
    padding = -x.shape[0] % min(nearest_code.CHUNK, x.shape[0])
    weight = jnp.pad(jnp.ones(x.shape[0]), (0, padding))
    return _lloyd(jnp.pad(x, ((0, padding), (0, 0))), weight, centroids, step_key, iterations)


def fit_residual(x: jax.Array, levels: int, codes: int, key: jax.Array, iterations: int = 25) -> jax.Array:
    """Codebooks (levels, codes, D) of a residual quantiser of x (N, D): k-means on the residual of the levels above."""
    residual = jnp.asarray(x, jnp.float32)
    codebooks = []
    for level in range(levels):
        codebooks.append(fit_kmeans(residual, codes, jax.random.fold_in(key, level), iterations))
        residual = residual - codebooks[-1][nearest_code.assign(residual, codebooks[-1])]
    return jnp.stack(codebooks)
