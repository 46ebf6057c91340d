"""Nearest-centroid assignment: the quantiser of the semantic tokenizer and of every level of the residual quantiser.

The paper has 1,024 clusters at 25 Hz (MeLoDy, arXiv 2305.15719, section 5.1). `training/fit_kmeans.py` fits centroids.

N vectors, C centroids, D width.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

CHUNK = 2048
"""Vectors whose distance table is computed at once."""


def distances(x: Float[ArrayLike, "N D"], centroids: Float[ArrayLike, "C D"]) -> Float[Array, "N C"]:
    """Squared Euclidean distances up to a term that is the same for every centroid."""
    x = jnp.asarray(x, jnp.float32)
    centroids = jnp.asarray(centroids, jnp.float32)
    return x @ (-2.0 * centroids.T) + jnp.sum(centroids * centroids, axis=-1)


def assign(x: Float[ArrayLike, "... D"], centroids: Float[ArrayLike, "C D"]) -> Int[Array, "..."]:
    """Index int32 of the nearest centroid, in [0, C); the lowest one in a tie.

    More than `CHUNK` vectors are assigned chunk by chunk, so that the distance table stays small.
    """
    x = jnp.asarray(x)
    flat = x.reshape(-1, x.shape[-1])
    if flat.shape[0] <= CHUNK:
        codes = jnp.argmin(distances(flat, centroids), axis=-1)
    else:
        codes = jax.lax.map(
            lambda row: jnp.argmin(distances(row[None], centroids)[0]), flat, batch_size=CHUNK
        )
    return codes.reshape(x.shape[:-1]).astype(jnp.int32)


def usage(codes: Int[Array, "..."], clusters: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How evenly codes in [0, clusters) use the codebook: the share that occurs, and perplexity / clusters."""
    counts = jnp.zeros(clusters, jnp.float32).at[codes.reshape(-1)].add(1.0)
    shares = counts / jnp.maximum(counts.sum(), 1.0)
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.maximum(shares, 1e-12)), 0.0))
    return jnp.mean(counts > 0), jnp.exp(entropy) / clusters
