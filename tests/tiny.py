"""A whole cascade at `tiny` size with random weights, for tests of what is built on networks."""

import dataclasses

import jax
import jax.numpy as jnp

from melody_jax.models import denoiser, dpd, lm, mulan, tokenizer, vae


def tiny_networks() -> dict:
    """Config and random parameters of each network, made to fit together."""
    keys = jax.random.split(jax.random.key(3), 8)
    configs = {
        "mulan": mulan.TINY,
        "tokenizer": tokenizer.TINY,
        "vae": vae.TINY,
        "lm": dataclasses.replace(lm.TINY, prefix_levels=mulan.TINY.levels, prefix_codes=mulan.TINY.codes),
        "dpd": dataclasses.replace(
            dpd.TINY,
            latent_dim=vae.TINY.latent_width,
            semantic_tokens=lm.TINY.semantic_vocab,
            prefix_codes=mulan.TINY.codes,
        ),
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
            "codebooks": jax.random.normal(keys[5], (mulan.TINY.levels, mulan.TINY.codes, mulan.TINY.embedding)),
        },
    }
    return {name: (params[name], configs[name]) for name in configs}
