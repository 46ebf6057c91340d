"""The inputs of each item of a batch: its prefix tokens, seed and numeric settings, and its random key.

B batch, P prefix levels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from melody_jax.models.decoding import CANDIDATES
from melody_jax.sampling.settings import SamplingSettings

Arrays = Array | np.ndarray
"""Arrays on the device or on the host."""


class Controls(NamedTuple):
    """The inputs of each item of a batch; `make_controls` builds them."""

    prefix_tokens: Int[Array, "B P"]
    """Prefix tokens of the prompt."""
    negative_prefix_tokens: Int[Array, "B P"]
    """Prefix tokens from which guidance steers the language model away; -1 is the learned null prefix."""
    seeds: UInt32[Array, "B 2"]
    """Random seed of the item, its upper and lower 32 bits."""
    candidate: Int[Array, " B"]
    """Number of the candidate among several clips with one seed."""
    temperature: Float[Array, " B"]
    """Temperature of the language model, at least 0."""
    top_k: Int[Array, " B"]
    """At least 1, at most `SamplerConfig.candidates`."""
    top_p: Float[Array, " B"]
    """In (0, 1]."""
    lm_guidance_scale: Float[Array, " B"]
    """Used if `SamplerConfig.lm_guided`."""
    control_scale: Float[Array, " B"]
    """Used if `SamplerConfig.controlled`; 1 for settings without it."""
    guidance_scale: Float[Array, " B"]
    """Used if `SamplerConfig.guided`, and by a distilled diffusion."""
    guidance_rescale: Float[Array, " B"]
    """From 0 to 1, used if `SamplerConfig.guided`."""


def make_controls(
    prefix_tokens: Int[Arrays, "B P"],
    settings: Sequence[SamplingSettings],
    negative_prefix_tokens: Int[Arrays, "B P"] | None = None,
    candidate: Sequence[int] | None = None,
    candidates: int = CANDIDATES,
) -> Controls:
    """The controls of a batch with the settings of each item, or with one setting for all of them.

    negative_prefix_tokens: None is the learned null prefix. candidate: None is candidate 0 of every seed.
    candidates: upper bound of `top_k`, as in `SamplerConfig`.
    """
    prefix_tokens = jnp.asarray(prefix_tokens)
    batch = prefix_tokens.shape[0]
    items = list(settings) * batch if len(settings) == 1 else list(settings)

    def column(name: str, dtype: Any) -> jax.Array:
        return jnp.asarray([getattr(item, name) for item in items], dtype)

    if negative_prefix_tokens is None:
        negative_prefix_tokens = jnp.full_like(prefix_tokens, -1)
    return Controls(
        prefix_tokens=prefix_tokens,
        negative_prefix_tokens=jnp.asarray(negative_prefix_tokens),
        seeds=split_seeds([item.seed for item in items]),
        candidate=jnp.asarray([0] * batch if candidate is None else candidate, jnp.int32),
        temperature=column("temperature", np.float32),
        top_k=jnp.asarray([min(item.top_k, candidates) for item in items], jnp.int32),
        top_p=column("top_p", np.float32),
        lm_guidance_scale=column("lm_guidance_scale", np.float32),
        control_scale=jnp.asarray([getattr(item, "control_scale", 1.0) for item in items], np.float32),
        guidance_scale=column("guidance_scale", np.float32),
        guidance_rescale=column("guidance_rescale", np.float32),
    )


def split_seeds(seeds: Sequence[int]) -> UInt32[Array, "B 2"]:
    """The upper and lower 32 bits of each seed, 0 to 2**64 - 1."""
    return jnp.asarray([divmod(int(seed), 2**32) for seed in seeds], jnp.uint32)


def item_keys(controls: Controls) -> Key[Array, " B"]:
    """One Threefry key per item, derived from its seed and candidate.

    The lower 32 bits of the seed are folded into a key that holds the upper ones.
    """

    def key(seed: jax.Array, candidate: jax.Array) -> jax.Array:
        root = jax.random.wrap_key_data(seed * jnp.array([1, 0], jnp.uint32), impl="threefry2x32")
        return jax.random.fold_in(jax.random.fold_in(root, seed[1]), candidate)

    return jax.vmap(key)(controls.seeds, controls.candidate)


def fold_in(keys: Key[Array, " B"], use: int | Array) -> Key[Array, " B"]:
    """The items' keys for one use of randomness; each use has its own number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, use)


def normal(keys: Key[Array, " B"], shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Standard normal numbers of this shape for each item, from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
