"""Nearest-centroid assignment: the quantiser of the semantic tokenizer and of every level of the residual quantiser.

Melody-paper section 2.2 (1,024 clusters at 25 Hz). Fitting is training's business (`training/fit_kmeans.py`).
N vectors, C centroids, D width.
"""

import jax
import jax.numpy as jnp

CHUNK = 2048


def distances(x: jax.Array, centroids: jax.Array) -> jax.Array:
    """Squared Euclidean distances up to a term constant in the centroid: (N, D), (C, D) -> (N, C) float32."""
    x, centroids = x.astype(jnp.float32), centroids.astype(jnp.float32)
    return x @ (-2.0 * centroids.T) + jnp.sum(centroids * centroids, axis=-1)


def assign(x: jax.Array, centroids: jax.Array) -> jax.Array:
    """Index of the nearest centroid: x (..., D), centroids (C, D) -> (...,) int32 in [0, C). Ties go to the lowest.

    More than `CHUNK` vectors are taken chunk by chunk, so that the distance table stays small.
    """
    flat = x.reshape(-1, x.shape[-1])
    if flat.shape[0] <= CHUNK:
        codes = jnp.argmin(distances(flat, centroids), axis=-1)
    else:
        codes = jax.lax.map(
            lambda row: jnp.argmin(distances(row[None], centroids)[0]), flat, batch_size=CHUNK
        )
    return codes.reshape(x.shape[:-1]).astype(jnp.int32)


def usage(codes: jax.Array, clusters: int) -> tuple[jax.Array, jax.Array]:
    """How well codes (...,) in [0, clusters) fill the codebook: (share of codes seen, perplexity / clusters)."""
    counts = jnp.zeros(clusters, jnp.float32).at[codes.reshape(-1)].add(1.0)
    shares = counts / jnp.maximum(counts.sum(), 1.0)
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.maximum(shares, 1e-12)), 0.0))
    return jnp.mean(counts > 0), jnp.exp(entropy) / clusters
