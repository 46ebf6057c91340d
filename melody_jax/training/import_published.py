"""Imports a published network into a cascade:

    melody import --kind mert --weights PATH/TO/MERT --data corpus/train --out release/mine

Weights are read from local files; nothing is downloaded. The files contain no quantiser of a MuLan and no clusters of a
tokenizer: these are fitted to audio shards. BERT and AST are not a MuLan by themselves: `--stage.text_weights` and
`--stage.music_weights` of configs/mulan_paper.py start its training from them.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from melody_jax.config import DataConfig
from melody_jax.data import pipeline
from melody_jax.errors import UserError
from melody_jax.models import mulan, tokenizer
from melody_jax.models.tokenizer import TokenizerConfig
from melody_jax.models.wav2vec2 import ROPE_LARGE
from melody_jax.options import option
from melody_jax.text import read_tokenizer
from melody_jax.training.export import publish
from melody_jax.training.stages.mulan import MuLanStage
from melody_jax.training.stages.tokenizer import TokenizerStage


class Kind(NamedTuple):
    """A published network: the stage with its shape, the stage's field for weights, and the licence."""

    stage: Any
    field: str
    licence: str


KINDS = {
    "clap-music": Kind(MuLanStage(model=mulan.CLAP), "clap_weights", "laion/larger_clap_music: Apache-2.0"),
    "clap": Kind(
        MuLanStage(model=mulan.CLAP_UNFUSED), "clap_weights", "laion/clap-htsat-unfused: Apache-2.0"
    ),
    "mert": Kind(
        TokenizerStage(model=tokenizer.MERT),
        "weights",
        "m-a-p/MERT-v1-95M: CC-BY-NC-4.0, not for commercial use; networks trained on its tokens inherit that",
    ),
    "wav2vec2-conformer": Kind(
        TokenizerStage(model=TokenizerConfig(encoder=ROPE_LARGE, spectral_share=0.0)),
        "weights",
        "facebook/wav2vec2-conformer-rope-large: Apache-2.0",
    ),
}


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Imports a published network as the MuLan or the tokenizer of a cascade."""

    kind: str = option("", group="what to import")
    """The network: clap-music, clap, mert or wav2vec2-conformer."""
    weights: str = ""
    """Folder with its model.safetensors, or a safetensors file."""
    text_tokenizer: str = ""
    """The tokenizer.json published with CLAP."""
    data: tuple[str, ...] = option((), group="how to fit")
    """Folders of audio shards to which the quantiser or the clusters are fitted."""
    codes: int = 1024
    """Codes per level of MuLan's quantiser, or ids of the tokenizer; the language model's config must agree."""
    batches: int = 512
    """Largest number of batches to fit to."""
    batch_size: int = 8
    """Clips of 10.24 s per batch."""
    seed: int = 0
    """Seed of the fit and of the choice of clips."""
    out: str = option("", group="where to write")
    """Folder of the release."""


def import_network(config: ImportConfig) -> Path:
    """Writes `<out>/<name>.safetensors`, `.json` and `.md` (and MuLan's tokenizer); returns the tensor file.

    Raises:
        UserError: the kind is unknown, an argument is missing, the weights do not fit, or there is too little audio.
    """
    if config.kind not in KINDS:
        raise UserError(f"--kind {config.kind or 'is missing'}: it must be one of {', '.join(KINDS)}")
    for name in ("weights", "data", "out"):
        if not getattr(config, name):
            raise UserError(f"--{name} is missing; see melody import --help")
    stage, field, licence = KINDS[config.kind]
    codes = "codes" if stage.name == "mulan" else "semantic_vocab"
    model = dataclasses.replace(stage.model, **{codes: config.codes})
    stage = dataclasses.replace(stage, model=model, **{field: config.weights})
    if stage.name == "mulan":
        read_tokenizer(config.text_tokenizer, model.text.vocab_size)
    data = DataConfig(
        folder=config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        text_tokenizer=config.text_tokenizer,
    )
    print(f"weights of {licence}")
    params = stage.init(jax.random.key(config.seed))["model"]
    batches = pipeline.finishing_batches(data, stage.batch, config.batches, stage.audio_format)
    batches = tqdm(batches, total=config.batches, desc="fit")
    params, fitted = stage.finish(params, batches, jax.random.key(config.seed))
    recipe = {"import": dataclasses.asdict(config)}
    return publish(config.out, stage, params, fitted, data, recipe, f"weights of {licence}")
