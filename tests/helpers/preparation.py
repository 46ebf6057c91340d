"""Tiny networks with random weights that `melody prepare` makes features with, and a config for short recordings."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from helpers.arrays import random_like
from melody_jax import release
from melody_jax.data.prepare import PrepareConfig
from melody_jax.models import mulan, tokenizer, vae
from melody_jax.models.conformer import ConformerConfig
from melody_jax.models.mulan import TINY as TINY_MULAN
from melody_jax.models.tokenizer import TokenizerConfig
from melody_jax.models.vae import TINY as TINY_VAE

TINY_TOKENIZER = TokenizerConfig(
    encoder=ConformerConfig(layers=1, width=16, heads=2, ffn=32, kernel=3, layer=1), semantic_vocab=16
)
BEAM = ("runner=DirectRunner",)


def write_networks(folder: Path) -> str:
    """A release of all networks that make features."""
    write_encoders(folder)
    params = random_like(lambda k: vae.init(TINY_VAE, k))
    params |= {"latent_mean": jnp.zeros(8), "latent_scale": jnp.ones(8)}
    release.save_network(folder, "vae", params, TINY_VAE, {})
    return str(folder)


def write_encoders(folder: Path) -> None:
    """A release of MuLan and the tokenizer, without an autoencoder."""
    key = jax.random.key(0)
    model = TINY_MULAN
    params = random_like(lambda k: mulan.init(model, k)) | {
        "music_mean": jnp.zeros(model.embedding),
        "text_mean": jnp.zeros(model.embedding),
        "codebooks": jax.random.normal(key, (model.levels, model.codes, model.embedding)),
    }
    release.save_network(folder, "mulan", params, model, {})
    width = TINY_TOKENIZER.feature_width
    params = random_like(lambda k: tokenizer.init(TINY_TOKENIZER, k)) | {
        "feature_mean": jnp.zeros(width),
        "feature_scale": jnp.ones(width),
        "codebook": jax.random.normal(key, (16, width)),
    }
    release.save_network(folder, "tokenizer", params, TINY_TOKENIZER, {})


def captions(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"file": f, "caption": c}) + "\n" for f, c in rows))
    return str(path)


def prepared(source: Path, networks: str, out: Path, **changes: Any) -> PrepareConfig:
    base = PrepareConfig(
        source=str(source),
        captions=str(source / "c.jsonl"),
        networks=networks,
        out=str(out),
        min_seconds=0.5,
        window_tokens=16,
        hop_tokens=4,
        variants=3,
        shard_recordings=3,
        batch_size=4,
        beam=BEAM,
    )
    return dataclasses.replace(base, **changes)
