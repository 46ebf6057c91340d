"""`melody export --run runs/vae_mini --out weights/mini`: releases the network of a run folder."""

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from melody_jax import release, release_folder
from melody_jax.config import DataConfig, LoRAConfig
from melody_jax.config_json import from_dict
from melody_jax.data import pipeline
from melody_jax.errors import UserError
from melody_jax.mirror import Mirror, mirrored
from melody_jax.models.functional import Params
from melody_jax.options import option
from melody_jax.roles import Roles
from melody_jax.sharding import make_mesh, state_sharding
from melody_jax.training import checkpoint
from melody_jax.training.card import model_card
from melody_jax.training.lora import adapter_roles, init_adapters, merge
from melody_jax.training.metric_log import read_rows
from melody_jax.training.run_folder import local_run, read_run
from melody_jax.training.stage import Metrics

STAGES = {
    "VAEStage": "vae",
    "MuLanStage": "mulan",
    "TokenizerStage": "tokenizer",
    "LMStage": "lm",
    "AcousticStage": "acoustic",
    "DPDStage": "dpd",
    "ConsistencyStage": "consistency",
    "DiffusionCodecStage": "diffusion_codec",
    "TextDiffusionStage": "text_diffusion",
    "TempoStage": "tempo",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Fits the parameters that a network gets after training, and releases its averaged weights."""

    run: str = option("", group="what to release")
    """Run folder of `melody train`."""
    out: str = option("", group="where to write")
    """Folder of the release, also in a bucket; it may hold the networks that this one depends on."""
    licence: str = "not stated"
    """Licence of the released weights, for the model card; the training data may require one."""
    batches: int = option(512, group="how to fit")
    """Training batches to fit on, at most; a stage may use fewer."""
    seed: int = 0
    """Seed of the fit (k-means, quantiser, latent statistics)."""


def export(config: ExportConfig) -> Path:
    """Writes `<out>/<name>.safetensors`, `.json` and the model card `.md`; returns the path of the tensor file.

    The weights are the run's latest average, with adapters merged into them. A distilled network is written as the
    difference to its teacher, which must be in `out`.

    Raises:
        UserError: no such run, a damaged checkpoint, or `out` holds other networks than those the run was trained on.
    """
    for name in ("run", "out"):
        if not getattr(config, name):
            raise UserError(f"--{name} is missing; see melody export --help")
    with mirrored(config.out) as mirror:
        written = _export(config, mirror)
    if mirror.remote is not None:
        print(f"{mirror}: uploaded", flush=True)
    return written


def _export(config: ExportConfig, mirror: Mirror) -> Path:
    """Writes the release to a local folder."""
    run = local_run(config.run)
    out = str(mirror.folder)
    described, hashes, _ = read_run(run)
    stage: Any = stage_from_dict(described["stage"])
    check_release(mirror, release.needed(stage.name, hashes))
    data = from_dict(DataConfig, described["data"])
    shapes = jax.eval_shape(lambda: stage.init(jax.random.key(0)))
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    if stage.name in release.DIFFERENCES:
        hashes |= _hash_of_base(
            run, shapes["base"], stage.roles["base"], mesh, mirror, release.DIFFERENCES[stage.name]
        )
    model = run_network(run, shapes["model"], stage.roles["model"], mesh)
    batches = pipeline.finishing_batches(data, stage.batch, config.batches, stage.audio_format)
    model, fitted = stage.finish(model, batches, jax.random.key(config.seed))
    recipe = {name: value for name, value in described.items() if name not in ("workdir", "mesh")}
    return publish(out, stage, model, fitted, data, recipe, config.licence, hashes, _last_evaluation(run))


def run_network(run: Path, shapes: Params, roles: Roles, mesh: Mesh) -> Params:
    """The network of a run folder: the latest average, with adapters merged into it.

    `shapes` are the network's arrays or their shapes, `roles` their roles.

    Raises:
        UserError: the folder is not a run, or its checkpoint is damaged or of another shape.
    """
    described, _, _ = read_run(run)
    lora = from_dict(LoRAConfig, described.get("lora", {}))
    checkpoints = checkpoint.Checkpoints(run)
    shardings = state_sharding(shapes, roles, mesh)
    network = checkpoint.abstract_like(shapes, shardings)
    try:
        if not lora.rank:
            return checkpoints.restore_ema(network)
        adapters = jax.eval_shape(lambda model: init_adapters(model, roles, lora, jax.random.key(0)), network)
        adapter_shardings = state_sharding(adapters, adapter_roles(roles, lora), mesh)
        average = checkpoints.restore_ema(checkpoint.abstract_like(adapters, adapter_shardings))
        base = checkpoints.restore_base(network)
    finally:
        checkpoints.close()
    return jax.jit(lambda base, adapters: merge(base, adapters, lora), out_shardings=shardings)(base, average)


def _hash_of_base(
    run: Path, shapes: Params, roles: Roles, mesh: Mesh, out: Mirror, name: str
) -> dict[str, str]:
    """{name: sha256} of the released network in `out`. Raises `UserError` if it is not the run's base."""
    checkpoints = checkpoint.Checkpoints(run)
    try:
        base = checkpoints.restore_base(checkpoint.abstract_like(shapes, state_sharding(shapes, roles, mesh)))
    finally:
        checkpoints.close()
    released = release.flatten(release.read_network(out.folder, name)[0])
    trained = release.flatten(base)
    same_paths = released.keys() == trained.keys()
    if not same_paths or not all(np.array_equal(released[path], trained[path]) for path in trained):
        raise UserError(
            f"{out} holds another {name} than the one this run started from; export to the folder of that one"
        )
    return {name: release.network_hash(out.folder, name)}


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
    """Writes the tensors, description and model card of a network, and a MuLan's tokenizer; returns the tensor file.

    `model` and `fitted` are the results of `stage.finish`. The arguments after `data` are those of `model_card`.
    """
    name = stage.name
    hashes = hashes or {}
    if name == "mulan":
        release.save_tokenizer(out, data.text_tokenizer, stage.model.text.vocab_size)
    measured = {**(metrics or {}), **{f"fit/{key}": float(value) for key, value in fitted.items()}}
    file = release.save_network(out, name, model, stage.model, hashes, measured)
    release.save_card(out, name, model_card(name, model, recipe, data.folder, hashes, measured, licence))
    print(f"wrote {file}, {name}.json and {name}.md")
    return file


def check_release(out: Mirror, hashes: dict[str, str]) -> None:
    """Refuses a release folder that holds other networks than `hashes` (network -> sha256) identifies.

    Raises:
        UserError: a network differs; the message names it.
    """
    for network, digest in hashes.items():
        folder = out.folder
        if release_folder.has_network(folder, network) and release.network_hash(folder, network) != digest:
            raise UserError(
                f"{out} holds another {network} than the one this run was trained on ({digest[:12]})"
            )


def stage_from_dict(values: dict[str, Any]) -> Any:
    """The stage that a run's config.json describes.

    Raises:
        UserError: this version has no such stage.
    """
    name = values.get("class")
    if name not in STAGES:
        raise UserError(f"stage {name!r} is unknown; it must be one of {', '.join(STAGES)}")
    module = importlib.import_module(f"melody_jax.training.stages.{STAGES[name]}")
    return from_dict(getattr(module, name), values)


def _last_evaluation(run: Path) -> dict[str, float]:
    """The metrics of the run's last evaluation, with its step."""
    last: dict[str, float] = {}
    for row in read_rows(run / "metrics.jsonl"):
        if any(name.startswith("eval/") for name in row):
            last = {name: value for name, value in row.items() if name == "step" or name.startswith("eval/")}
    return last
