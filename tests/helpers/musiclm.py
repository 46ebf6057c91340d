"""The networks of a tiny MusicLM with random weights."""

import dataclasses
from typing import Any

import jax

from helpers.tiny import tiny_networks
from melody_jax.config import load_config
from melody_jax.models import lm, lm_config, vae


def codec() -> dict[str, Any]:
    """Parameters of the tiny codec, with random codebooks."""
    params = vae.init(vae.TINY_CODES, jax.random.key(0))
    return params | {"codebooks": jax.random.normal(jax.random.key(1), params["codebooks"].shape)}


def musiclm_networks() -> dict[str, tuple[Any, Any]]:
    """Parameters and config of each network; those of one layer compile fastest."""
    tiny = tiny_networks()
    configs = {
        "coarse": dataclasses.replace(load_config("coarse_tiny").stage.model, prefix_codes=8),
        "fine": load_config("fine_tiny").stage.model,
    }
    configs = {name: dataclasses.replace(config, layers=1) for name, config in configs.items()}
    languages = {
        name: (lm.init(config, jax.random.key(i)), config) for i, (name, config) in enumerate(configs.items())
    }
    return {"mulan": tiny["mulan"], "lm": tiny["lm"], **languages, "vae": (codec(), vae.TINY_CODES)}


def following_networks() -> dict[str, tuple[Any, Any]]:
    """As `musiclm_networks`; the semantic and the coarse model follow a melody."""
    networks = musiclm_networks()
    semantic = dataclasses.replace(lm_config.TINY, melody_span=1, layers=1)
    coarse = dataclasses.replace(networks["coarse"][1], melody_span=2)
    return networks | {
        "lm": (with_melody(semantic, 0), semantic),
        "coarse": (with_melody(coarse, 3), coarse),
    }


def with_melody(config: lm_config.LMConfig, seed: int) -> dict[str, Any]:
    """Random parameters, also of the melody: a fresh network has zeros there."""
    params = lm.init(config, jax.random.key(seed))
    assert not params["melody"].any()
    return params | {"melody": 4 * jax.random.normal(jax.random.key(seed + 1), params["melody"].shape)}


def audiolm_networks() -> dict[str, tuple[Any, Any]]:
    """Parameters and config of each network; those of one layer compile fastest."""
    small = {"layers": 1, "prefix_levels": 0}
    semantic = dataclasses.replace(lm_config.TINY, recall=False, **small)
    coarse = dataclasses.replace(load_config("coarse_tiny").stage.model, **small)
    fine = dataclasses.replace(load_config("fine_tiny").stage.model, layers=1)
    languages = {
        name: (lm.init(config, jax.random.key(i)), config)
        for i, (name, config) in enumerate({"lm": semantic, "coarse": coarse, "fine": fine}.items())
    }
    return {"tokenizer": tiny_networks()["tokenizer"], **languages, "vae": (codec(), vae.TINY_CODES)}
