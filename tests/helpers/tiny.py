"""A complete cascade at `tiny` size with random weights, for tests of code that uses networks."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax.models import denoiser, dpd, lm, lm_config, mulan, tokenizer, vae
from melody_jax.models.denoiser import DenoiserConfig
from melody_jax.sharding import path_name

PROMPTS = ["a calm solo piano piece", "driving techno at 130 bpm", "slow sad cello", "bossa nova"]


def tiny_networks() -> dict:
    """Config and random parameters of each network, compatible with each other."""
    keys = jax.random.split(jax.random.key(3), 8)
    configs = {
        "mulan": mulan.TINY,
        "tokenizer": tokenizer.TINY,
        "vae": vae.TINY,
        "lm": lm_config.TINY,
        "dpd": dpd.TINY,
    }
    started = {  # jitted: one compilation each instead of one for every little operation
        name: jax.jit(module.init, static_argnums=0)(configs[name], keys[i])
        for i, (name, module) in enumerate(
            {"mulan": mulan, "vae": vae, "lm": lm, "dpd": denoiser, "tokenizer": tokenizer}.items()
        )
    }
    codebook = jax.random.normal(keys[6], started["tokenizer"]["codebook"].shape)
    params = started | {
        "tokenizer": started["tokenizer"] | {"codebook": codebook},
        "mulan": started["mulan"]
        | {
            "music_mean": jnp.zeros(mulan.TINY.embedding),
            "text_mean": jnp.zeros(mulan.TINY.embedding),
            "codebooks": jax.random.normal(
                keys[5], (mulan.TINY.levels, mulan.TINY.codes, mulan.TINY.embedding)
            ),
        },
    }
    return {name: (params[name], configs[name]) for name in configs}


def random_denoiser(config: DenoiserConfig) -> Any:
    """Parameters without a zero among them, so that all that could have an effect has one; nothing is compiled."""
    rng, shapes = np.random.default_rng(5), jax.eval_shape(partial(denoiser.init, config), jax.random.key(0))

    def draw(path: Any, leaf: Any) -> np.ndarray:
        gain = path_name(path).endswith("scale")
        size = 0.2 if leaf.ndim < 2 else math.prod(leaf.shape[:-1]) ** -0.5
        return (gain + size * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
