"""From a run folder to a released network: `melody export --run runs/vae_mini --out weights/mini`."""

import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from melody_jax import release
from melody_jax.config import DataConfig, LoRAConfig
from melody_jax.config_json import from_dict
from melody_jax.data import pipeline
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.sharding import make_mesh, state_sharding
from melody_jax.training import checkpoint
from melody_jax.training.card import model_card
from melody_jax.training.lora import init_adapters, merge
from melody_jax.training.stage import Metrics

STAGES = {
    "VAEStage": "vae",
    "MuLanStage": "mulan",
    "TokenizerStage": "tokenizer",
    "LMStage": "lm",
    "DPDStage": "dpd",
    "ConsistencyStage": "consistency",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Fits what a network needs after training and releases its averaged weights."""

    run: str = ""
    """Run folder of train.py."""
    out: str = ""
    """Folder of the release; the networks it depends on may be there already."""
    batches: int = 512
    """Training batches that are there to fit on, at most; a stage may stop earlier."""
    licence: str = "not stated"
    """Of the released weights, for the model card; the data may demand one."""
    seed: int = 0
    """Seed of what is fitted (k-means, quantiser, latent statistics)."""


def export(config: ExportConfig) -> Path:
    """Writes `<out>/<name>.safetensors`, `.json` and the model card `.md`; returns the tensor file.

    The weights are the run's latest average, adapters merged into them. Of a distilled network the difference is
    written to the one it was made from, which must be in `out`.

    Raises:
        UserError: no such run, a damaged checkpoint, or networks in `out` that are not those the run was trained on.
    """
    for name in ("run", "out"):
        if not getattr(config, name):
            raise UserError(f"--{name} is missing; see melody export --help")
    run = Path(config.run)
    described, hashes, _ = checkpoint.read_run(run)
    check_release(config.out, hashes)
    stage: Any = stage_from_dict(described["stage"])
    data = from_dict(DataConfig, described["data"])
    shapes = jax.eval_shape(lambda: stage.init(jax.random.key(0)))
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    if stage.name in release.DIFFERENCES:
        hashes |= _hash_of_base(run, shapes["base"], mesh, config.out, release.DIFFERENCES[stage.name])
    model = run_network(run, shapes["model"], mesh)
    batches = pipeline.finishing_batches(data, stage.batch, config.batches)
    model, fitted = stage.finish(model, batches, jax.random.key(config.seed))
    recipe = {name: value for name, value in described.items() if name not in ("workdir", "mesh")}
    return publish(
        config.out, stage, model, fitted, data, recipe, config.licence, hashes, _last_evaluation(run)
    )


def run_network(run: Path, shapes: Params, mesh: Mesh) -> Params:
    """The network of a run folder, `shapes` its arrays or their shapes: the latest average, adapters merged into it.

    Raises:
        UserError: the folder is not a run, or its checkpoint is damaged or of another shape.
    """
    described, _, _ = checkpoint.read_run(run)
    lora = from_dict(LoRAConfig, described.get("lora", {}))
    checkpoints = checkpoint.Checkpoints(run)
    places = state_sharding(shapes, mesh)
    network = checkpoint.abstract_like(shapes, places)
    try:
        if not lora.rank:
            return checkpoints.restore_ema(network)
        adapters = jax.eval_shape(lambda model: init_adapters(model, lora, jax.random.key(0)), network)
        average = checkpoints.restore_ema(checkpoint.abstract_like(adapters, state_sharding(adapters, mesh)))
        base = checkpoints.restore_base(network)
    finally:
        checkpoints.close()
    return jax.jit(lambda base, adapters: merge(base, adapters, lora), out_shardings=places)(base, average)


def _hash_of_base(run: Path, shapes: Params, mesh: Mesh, out: str, name: str) -> dict[str, str]:
    """{name: sha256} of the released network in `out`; refuses another one than the run's base."""
    checkpoints = checkpoint.Checkpoints(run)
    try:
        base = checkpoints.restore_base(checkpoint.abstract_like(shapes, state_sharding(shapes, mesh)))
    finally:
        checkpoints.close()
    there, own = release.flatten(release.read_network(out, name)[0]), release.flatten(base)
    if there.keys() != own.keys() or not all(np.array_equal(there[path], own[path]) for path in own):
        raise UserError(
            f"{out} holds another {name} than the one this run started from; export it where that one is"
        )
    return {name: release.network_hash(out, name)}


def publish(
    out: str,
    stage: Any,
    model: Params,
    fitted: Metrics,
    data: DataConfig,
    recipe: Mapping[str, Any],
    licence: str,
    hashes: dict[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Writes what `stage.finish` returned: tensors, description, model card, a MuLan's tokenizer; returns the first.

    The arguments after `data` are those of `model_card`.
    """
    name, hashes = stage.name, hashes or {}
    if name == "mulan":
        release.save_tokenizer(out, data.text_tokenizer, stage.model.text.vocab_size)
    found = {**(metrics or {}), **{f"fit/{key}": float(value) for key, value in fitted.items()}}
    file = release.save_network(out, name, model, stage.model, hashes, found)
    release.save_card(out, name, model_card(name, model, recipe, data.folder, hashes, found, licence))
    return file


def check_release(out: str, hashes: dict[str, str]) -> None:
    """Refuses a release folder that holds other networks than those named in `hashes`.

    Raises:
        UserError: names the network.
    """
    for network, digest in hashes.items():
        if (Path(out) / f"{network}.safetensors").is_file() and release.network_hash(out, network) != digest:
            raise UserError(
                f"{out} holds another {network} than the one this run was trained on ({digest[:12]})"
            )


def stage_from_dict(values: dict[str, Any]) -> Any:
    """The stage that a run's config.json describes.

    Raises:
        UserError: a stage that this version does not have.
    """
    name = values.get("class")
    if name not in STAGES:
        raise UserError(f"stage {name!r} is unknown; there are {', '.join(STAGES)}")
    module = importlib.import_module(f"melody_jax.training.stages.{STAGES[name]}")
    return from_dict(getattr(module, name), values)


def _last_evaluation(run: Path) -> dict[str, float]:
    """The metrics of the run's last evaluation, with its step."""
    found: dict[str, float] = {}
    file = run / "metrics.jsonl"
    for line in file.read_text().splitlines() if file.is_file() else ():
        row = json.loads(line)
        if any(name.startswith("eval/") for name in row):
            found = {name: value for name, value in row.items() if name == "step" or name.startswith("eval/")}
    return found
