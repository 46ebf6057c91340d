"""The sizes of features, compared with those of the network that trains on them.

JAX clamps an index that is too large: a network with fewer ids than its features would train on other tokens.
"""

import dataclasses
from typing import Any

import numpy as np

from melody_jax import audio, release
from melody_jax.audio_format import AudioFormat, check_covers
from melody_jax.control_tokens import ControlVocabulary
from melody_jax.data.records import RecordSource, decode_json, frames_name
from melody_jax.errors import UserError
from melody_jax.models.rvq import QuantiserConfig

SETTING = "shapes"
"""Name of the manifest's setting that holds the sizes."""
ID_COUNTS = ("semantic_ids", "prefix_ids", "code_ids")
"""Sizes of which a network may have more."""
LEVELS = ("code_levels",)
"""Sizes of which features may have more: a network may use the first levels alone."""
MAX_IDS = 2**15
"""Feature records store ids as 16-bit integers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureShape:
    """Sizes of features, or those that a network needs; 0: not known, or any."""

    semantic_ids: int = 0
    """Number of semantic ids."""
    prefix_levels: int = 0
    """Prefix tokens of a window."""
    prefix_ids: int = 0
    """Number of ids of each prefix level."""
    latent_channels: int = 0
    """Channels of a latent."""
    latents_per_token: int = 0
    """Latents, or frames of codes, in the time of one semantic token."""
    code_levels: int = 0
    """Codes of a frame."""
    code_ids: int = 0
    """Number of ids of each code."""
    window_tokens: int = 0
    """Semantic tokens of a window."""
    controls: ControlVocabulary | None = None
    """The control tokens that the network needs; None: none."""
    melody: bool = False
    """Whether the network follows a melody."""

    def as_settings(self) -> dict[str, int]:
        """Name -> size, of the sizes that are known."""
        return {
            name: size for name, size in vars(self).items() if size and name not in ("controls", "melody")
        }


def shape_of_networks(folder: str) -> FeatureShape:
    """The sizes of features that the released networks in a folder make.

    Raises:
        UserError: a network is missing, or has more ids than a feature record can store.
    """
    mulan, tokenizer, vae = (
        release.read_description(folder, name)["config"] for name in ("mulan", "tokenizer", "vae")
    )
    stored = vae.get("quantiser")
    quantiser = QuantiserConfig(**stored) if stored else None
    shape = FeatureShape(
        semantic_ids=tokenizer["semantic_vocab"],
        prefix_levels=mulan["levels"],
        prefix_ids=mulan["codes"],
        latent_channels=0 if quantiser else vae["latent_width"],
        code_levels=quantiser.levels if quantiser else 0,
        code_ids=quantiser.codes if quantiser else 0,
    )
    largest = max(shape.semantic_ids, shape.prefix_ids, shape.code_ids)
    if largest > MAX_IDS:
        raise UserError(f"{folder}: a network has {largest} ids, feature records store at most {MAX_IDS}")
    return shape


def vae_format(folder: str) -> AudioFormat:
    """Sample rate and channels of the released autoencoder in a folder. Raises `UserError` if there is none."""
    codec = release.read_description(folder, "vae")["config"]["codec"]
    return AudioFormat(**{name: codec[name] for name in ("sample_rate", "channels") if name in codec})


def check_audio_source(source: RecordSource, needed: AudioFormat) -> None:
    """Raises `UserError` if the audio of a folder has a lower rate or fewer channels than a network needs."""
    check_covers(source.folder, audio.flac_info(source[0]["audio"].tobytes())[1], needed)


def check_source(source: RecordSource, needed: FeatureShape, window_tokens: int) -> None:
    """Compares the sizes in a folder's manifest, and those of its first record, with what a network needs.

    Raises:
        UserError: a size differs.
    """
    stated = source.manifest.settings.get(SETTING) or {}
    _compare(str(source.folder), stated, needed)
    _compare("data.window_tokens", {"window_tokens": window_tokens}, needed)
    record = source[0]
    tokens = record["semantic_tokens"]
    name = frames_name(record)
    frames = record[name]
    sizes = {
        "prefix_levels": record["prefix_tokens"].shape[-1],
        "latent_channels": frames.shape[-1] if name == "latents" else 0,
        "code_levels": frames.shape[-1] if name == "codes" else 0,
        "latents_per_token": len(frames) // max(len(tokens), 1),
    }
    _compare(str(source.folder), sizes, needed)


def _compare(place: str, sizes: dict[str, Any], needed: FeatureShape) -> None:
    for name, value in needed.as_settings().items():
        if name not in sizes:
            continue
        most = "at most " if name in ID_COUNTS else "at least " if name in LEVELS else ""
        too_many = sizes[name] > value and name not in LEVELS
        too_few = sizes[name] < value and name not in ID_COUNTS
        if too_many or too_few:
            raise UserError(
                f"{place}: {name.replace('_', ' ')} {sizes[name]}, and this stage's network needs {most}{value}; set "
                "--stage.model alike, or prepare features with the networks that belong to it"
            )


def check_item(item: dict[str, np.ndarray], record: dict[str, np.ndarray], needed: FeatureShape) -> None:
    """Raises `UserError` if a token of an item is not an id of the network."""
    counts = {
        "semantic_tokens": needed.semantic_ids,
        "prefix_tokens": needed.prefix_ids,
        "codes": needed.code_ids,
    }
    for name, count in counts.items():
        tokens = item.get(name)
        if tokens is not None and count and not 0 <= tokens.min() <= tokens.max() < count:
            bad = tokens.max() if tokens.max() >= count else tokens.min()
            raise UserError(
                f"record {decode_json(record['meta']).get('id')!r} has {name} with the id {bad}, and this stage's "
                f"network has ids 0 to {count - 1}; set --stage.model alike, or prepare the features again"
            )
