"""MuLan: a joint embedding of music and text, quantised to the prefix tokens that condition the LM.

MuLan is arXiv 2208.12415; MeLoDy (arXiv 2305.15719) uses it in section 3.1. A music tower (`models/music_tower.py`;
`models/ast.py` as in the paper; `models/htsat.py` as in CLAP) and a text tower (`models/text_tower.py`), each with a
projection, map to the unit sphere.

The quantiser first subtracts the mean of each modality, because music and text embeddings occupy different
regions (the modality gap).
`params["music_mean"]`, `params["text_mean"]` and `params["codebooks"]` are fitted after training. The deep levels of a
text embedding still carry little information, so the LM drops deep levels at random in training.

B batch, T samples at 24 kHz, F mel frames, M mel bands, N word pieces, D pooled channels, E embedding, V levels,
C codes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, Num

from melody_jax import sharding
from melody_jax.errors import UserError
from melody_jax.models import ast, functional, htsat, music_tower, rvq
from melody_jax.models.ast import AST, ASTConfig
from melody_jax.models.functional import Params, make_rngs
from melody_jax.models.htsat import HTSAT, HTSATConfig
from melody_jax.models.music_tower import MusicTowerConfig, SmallTower
from melody_jax.models.text_tower import BERT_BASE, ROBERTA_BASE, TextConfig, TextEncoder
from melody_jax.models.tower import MusicTower, Projection
from melody_jax.roles import CODEBOOK, HEAD, VECTOR, Roles


@dataclass(frozen=True, kw_only=True)
class MuLanConfig:
    """Both towers and the quantiser. The defaults are `mini`."""

    embedding: int = 128
    """Width E of the joint space."""
    levels: int = 12
    """Levels V of the residual quantiser: prefix tokens per clip."""
    codes: int = 256
    """Codes C per level (1024 in `paper`)."""
    projection_hidden: int = 0
    """Hidden channels, with a ReLU, of each tower's projection (CLAP: 512); 0: a single matrix (MuLan)."""
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
"""LAION-CLAP in the shape of `laion/larger_clap_music`, which `convert/clap.py` reads: 193.9 M parameters."""
CLAP_UNFUSED = replace(CLAP, music=htsat.CLAP_UNFUSED)
"""CLAP with the smaller tower of `laion/clap-htsat-unfused`."""


class Tower(NamedTuple):
    """A kind of music tower."""

    network: Callable[..., MusicTower]
    spectrogram: Callable[[Any, jax.Array], jax.Array]


TOWERS: dict[type, Tower] = {
    MusicTowerConfig: Tower(SmallTower, music_tower.spectrogram),
    ASTConfig: Tower(AST, ast.spectrogram),
    HTSATConfig: Tower(HTSAT, htsat.spectrogram),
}
"""Config -> music tower."""


def unit(x: Float[Array, "... E"]) -> Float[Array, "... E"]:
    """x scaled to length 1 over its last axis; a zero vector stays zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def _init_projection(config: MuLanConfig, inputs: int, key: jax.Array) -> nnx.Param | Projection:
    if config.projection_hidden:
        return Projection(inputs, config.projection_hidden, config.embedding, key=key)
    return nnx.Param(jax.random.normal(key, (inputs, config.embedding)) * inputs**-0.5, role=HEAD)


def _project(projection: nnx.Param | Projection, pooled: jax.Array) -> jax.Array:
    """A tower's pooled features (B, D) on the unit sphere of the joint space (B, E)."""
    pooled = sharding.constrain_batch(pooled)
    joint = projection(pooled) if isinstance(projection, Projection) else pooled @ projection[...]
    return unit(sharding.constrain_batch(joint))


class TextTower(nnx.Module):
    """The text encoder and its projection."""

    def __init__(self, config: MuLanConfig, encoder_key: jax.Array, projection_key: jax.Array) -> None:
        self.encoder = TextEncoder(config.text, rngs=make_rngs(encoder_key))
        self.projection = _init_projection(config, config.text.width, projection_key)


class MuLan(nnx.Module):
    """Both towers, without the quantiser."""

    def __init__(self, config: MuLanConfig, *, rngs: nnx.Rngs) -> None:
        tower_key, encoder_key, music_key, text_key = functional.split_key(rngs, 4)
        self.music = TOWERS[type(config.music)].network(config.music, rngs=make_rngs(tower_key))
        self.music.projection = _init_projection(config, config.music.pooled, music_key)
        self.text = TextTower(config, encoder_key, text_key)

    def embed_frames(self, frames: Float[Array, "B F M"]) -> Float[Array, "B E"]:
        """Unit embeddings of frames of `spectrogram`."""
        return _project(self.music.projection, self.music(frames))

    def embed_text(self, ids: Int[Array, "B N"], mask: Num[Array, "B N"]) -> Float[Array, "B E"]:
        """Unit embeddings of word pieces."""
        return _project(self.text.projection, self.text.encoder(ids, mask))


def roles(config: MuLanConfig) -> Roles:
    """The role of every parameter, including those that are fitted after training."""
    fitted = {"music_mean": VECTOR, "text_mean": VECTOR, "codebooks": CODEBOOK}
    return functional.roles(MuLan, config) | fitted


def shapes(config: MuLanConfig) -> Params:
    """The shape and type of every parameter, including those that are fitted after training."""
    mean = jax.ShapeDtypeStruct((config.embedding,), jnp.float32)
    codebooks = jax.ShapeDtypeStruct((config.levels, config.codes, config.embedding), jnp.float32)
    fitted = {"music_mean": mean, "text_mean": mean, "codebooks": codebooks}
    return functional.shapes(MuLan, config) | fitted


def init(config: MuLanConfig, key: Key[Array, ""]) -> Params:
    """Fresh float32 parameters of both towers, without the means and codebooks that are fitted after training."""
    return functional.init(MuLan, config, key=key)


def _bind(params: Params, config: MuLanConfig) -> MuLan:
    """The towers. Released parameters may lack one of them; the quantiser's arrays belong to neither."""
    towers = {name: params[name] for name in ("music", "text") if name in params}
    return functional.bind(MuLan, config, params=towers)


def spectrogram(config: MuLanConfig, audio: Float[ArrayLike, "B T"]) -> Float[Array, "B F M"]:
    """The music tower's input, of about unit variance, from audio."""
    return TOWERS[type(config.music)].spectrogram(config.music, jnp.asarray(audio))


def embed_frames(
    params: Params, config: MuLanConfig, frames: Float[ArrayLike, "B F M"]
) -> Float[Array, "B E"]:
    """Unit embeddings of frames of `spectrogram`."""
    return _bind(params, config).embed_frames(jnp.asarray(frames))


def embed_music(params: Params, config: MuLanConfig, audio: Float[ArrayLike, "B T"]) -> Float[Array, "B E"]:
    """Unit embeddings of audio. Training uses windows of 5 to 10 s: embed longer audio as the mean over windows.

    The mean needs no scaling before `quantise`.
    """
    return embed_frames(params, config, spectrogram(config, audio))


def embed_text(
    params: Params, config: MuLanConfig, ids: Int[ArrayLike, "B N"], mask: Num[ArrayLike, "B N"]
) -> Float[Array, "B E"]:
    """Unit embeddings of the ids and mask of `text.py: tokenize`."""
    return _bind(params, config).embed_text(jnp.asarray(ids), jnp.asarray(mask))


def centre(params: Params, embedding: Float[Array, "... E"], modality: str) -> Float[Array, "... E"]:
    """Embeddings less the mean of their modality, on the unit sphere again: the quantiser's input.

    Raises:
        UserError: `modality` is neither "music" nor "text".
    """
    if modality not in ("music", "text"):
        raise UserError(f"modality {modality!r}: it must be 'music' or 'text'")
    return unit(unit(embedding) - params[f"{modality}_mean"])


def quantise(
    params: Params, config: MuLanConfig, embedding: Float[Array, "... E"], modality: str = "music"
) -> Int[Array, "... V"]:
    """Prefix tokens int32 in [0, C) of embeddings of the modality, coarse level first."""
    return rvq.quantise(params["codebooks"][: config.levels], centre(params, embedding, modality))
