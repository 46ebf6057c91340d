"""MuLan: music and text in one space, quantised to the prefix tokens that condition the LM (melody-paper section 2.1).

A music tower (`models/music_tower.py`, `models/ast.py` as in the paper, `models/htsat.py` as in CLAP) and a text tower
(`models/text_tower.py`), each with a projection, end on the unit sphere.

The quantiser centres each modality first ("Modality gap"): `params["music_mean"]`, `params["text_mean"]` and
`params["codebooks"]` are fitted after training. The deep levels of a text embedding still say little, which is why the
LM drops deep levels at random in training.

B batch, T samples at 24 kHz, F mel frames, M mel bands, N word pieces, E embedding, V levels, C codes.
"""

from dataclasses import dataclass, field, replace
from types import ModuleType

import jax
import jax.numpy as jnp
from flax import nnx

from melody_jax import sharding
from melody_jax.errors import UserError
from melody_jax.models import ast, functional, htsat, music_tower, rvq, text_tower
from melody_jax.models.ast import ASTConfig
from melody_jax.models.functional import Params
from melody_jax.models.htsat import HTSATConfig
from melody_jax.models.music_tower import MusicTowerConfig
from melody_jax.models.text_tower import BERT_BASE, ROBERTA_BASE, TextConfig

TOWERS: dict[type, ModuleType] = {MusicTowerConfig: music_tower, ASTConfig: ast, HTSATConfig: htsat}
"""Which module a music tower's config is for."""


@dataclass(frozen=True, kw_only=True)
class MuLanConfig:
    """Both towers and the quantiser. The defaults are `mini`."""

    embedding: int = 128
    """Width E of the joint space."""
    levels: int = 12
    """Levels V of the residual quantiser: prefix tokens a clip."""
    codes: int = 256
    """Codes C a level (1024 in `paper`)."""
    projection_hidden: int = 0
    """Hidden channels of each tower's projection, with a ReLU (CLAP: 512); 0: a matrix (MuLan)."""
    music: MusicTowerConfig | ASTConfig | HTSATConfig = field(default_factory=MusicTowerConfig)
    """The music tower."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text tower."""


TINY = MuLanConfig(
    embedding=16, codes=8, music=music_tower.TINY, text=TextConfig(layers=1, width=32, heads=2, ffn=64)
)
"""For tests."""
PAPER = MuLanConfig(codes=1024, music=ASTConfig(), text=BERT_BASE)
"""AST and BERT-base: the paper's 195.3 M parameters."""
CLAP = MuLanConfig(embedding=512, codes=1024, projection_hidden=512, music=HTSATConfig(), text=ROBERTA_BASE)
"""LAION-CLAP as `laion/larger_clap_music` has it, whose weights `convert/clap.py` reads: 193.9 M parameters."""
CLAP_UNFUSED = replace(CLAP, music=htsat.CLAP_UNFUSED)
"""The same with the smaller tower of `laion/clap-htsat-unfused`."""


def init(config: MuLanConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters of both towers, without what is fitted after training (means and codebooks)."""
    tower, encoder, music_key, text_key = jax.random.split(key, 4)
    pooled, words = config.music.pooled, config.text.width
    return {
        "music": {
            **TOWERS[type(config.music)].init(config.music, tower),
            "projection": _init_projection(config, pooled, music_key),
        },
        "text": {
            "encoder": text_tower.init(config.text, encoder),
            "projection": _init_projection(config, words, text_key),
        },
    }


def _init_projection(config: MuLanConfig, inputs: int, key: jax.Array) -> Params | jax.Array:
    if not config.projection_hidden:
        return jax.random.normal(key, (inputs, config.embedding)) * inputs**-0.5
    keys, hidden = jax.random.split(key), config.projection_hidden
    return {
        "up": functional.init(nnx.Linear, inputs, hidden, key=keys[0]),
        "out": functional.init(nnx.Linear, hidden, config.embedding, key=keys[1]),
    }


def _project(projection: Params | jax.Array, config: MuLanConfig, pooled: jax.Array) -> jax.Array:
    """A tower's pooled features (B, D) on the unit sphere of the joint space (B, E)."""
    pooled = sharding.constrain_batch(pooled)
    if not isinstance(projection, dict):
        return unit(sharding.constrain_batch(pooled @ projection))
    hidden = config.projection_hidden
    up = functional.bind(nnx.Linear, pooled.shape[-1], hidden, params=projection["up"])
    out = functional.bind(nnx.Linear, hidden, config.embedding, params=projection["out"])
    return unit(sharding.constrain_batch(out(jax.nn.relu(up(pooled)))))


def unit(x: jax.Array) -> jax.Array:
    """x scaled to length 1 over its last axis; a zero vector stays zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def spectrogram(config: MuLanConfig, audio: jax.Array) -> jax.Array:
    """The frames (B, F, M), of about unit variance, that the music tower hears audio (B, T) as."""
    return TOWERS[type(config.music)].spectrogram(config.music, audio)


def embed_frames(params: Params, config: MuLanConfig, frames: jax.Array) -> jax.Array:
    """Unit embeddings (B, E) of frames (B, F, M) that `spectrogram` made."""
    pooled = TOWERS[type(config.music)].encode(params["music"], config.music, frames)
    return _project(params["music"]["projection"], config, pooled)


def embed_music(params: Params, config: MuLanConfig, audio: jax.Array) -> jax.Array:
    """Unit embeddings (B, E) of audio (B, T), float32 at 24 kHz. Trained on windows of 5 to 10 s: average longer ones.

    The average of the windows' embeddings needs no scaling before `quantise`.
    """
    return embed_frames(params, config, spectrogram(config, audio))


def embed_text(params: Params, config: MuLanConfig, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Unit embeddings (B, E) of word pieces: ids and mask (B, N) of `text.py:tokenize`."""
    pooled = text_tower.encode(params["text"]["encoder"], config.text, ids, mask)
    return _project(params["text"]["projection"], config, pooled)


def centre(params: Params, embedding: jax.Array, modality: str) -> jax.Array:
    """Embeddings (..., E) with their modality's mean taken out, on the unit sphere again: what the quantiser sees.

    Raises:
        UserError: `modality` is neither "music" nor "text".
    """
    if modality not in ("music", "text"):
        raise UserError(f"modality {modality!r}: it must be 'music' or 'text'")
    return unit(unit(embedding) - params[f"{modality}_mean"])


def quantise(params: Params, config: MuLanConfig, embedding: jax.Array, modality: str = "music") -> jax.Array:
    """Prefix tokens (..., V) int32 in [0, C) of embeddings (..., E) of the modality, coarse level first."""
    return rvq.quantise(params["codebooks"][: config.levels], centre(params, embedding, modality))
