"""One run of a study that trains: training, measures and cost. The run folder holds:

config.json, checkpoints/   files of the training loop
metrics.jsonl               a row for every step, with digests of its data and draws
cost.json                   written at the end of training
<measure>.safetensors       the arrays of a measure, clips first
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from melody_jax import files, release_folder
from melody_jax.ablation.files import COST, save_arrays
from melody_jax.ablation.measures import MEASURES, Probe
from melody_jax.config import DataConfig, TrainConfig, WatchConfig
from melody_jax.data import pipeline
from melody_jax.data.records import open_shards
from melody_jax.errors import UserError
from melody_jax.flops import matmul_cost
from melody_jax.models import denoiser
from melody_jax.models.functional import count
from melody_jax.sharding import make_mesh, mesh_context, place_batch, state_sharding
from melody_jax.training.checkpoint import abstract_like
from melody_jax.training.export import run_network
from melody_jax.training.loop import make_step, train
from melody_jax.training.metric_log import read_rows
from melody_jax.training.state import create_state, state_roles

WINDOWS = 4
"""Measured windows of every held-out clip; the metric of a clip is their mean."""


def identity(config: TrainConfig) -> dict[str, Any]:
    """The identity of a run's data: the hashes of the training and the held-out shards."""
    data = config.data
    if not data.validation_folder:
        raise UserError("a study is measured on held-out clips: give their folder, --validation-folder")
    return {
        name: [
            shard.sha256 for folder in folders for shard in open_shards(folder, "features").manifest.shards
        ]
        for name, folders in (("training", data.folder), ("held_out", data.validation_folder))
    }


def run_arm(config: TrainConfig, folder: Path, measures: Iterable[str], minutes: float, quiet: bool) -> bool:
    """Trains, from the last checkpoint if there is one, and takes the measures.

    Returns:
        False if the time limit (`minutes`, 0: none) or SIGTERM ended the training early.

    Raises:
        Diverged: the loss or the gradient is not finite.
    """
    config = replace(
        config,
        workdir=str(folder),
        log_every=1,
        keep_last=1,
        stop_minutes=minutes,
        watch=WatchConfig(digests=True),
    )
    if not (folder / COST).is_file():
        hashes = pipeline.check_provenance(config.data, config.stage.batch)
        shape = config.stage.features
        batches = pipeline.TrainingBatches(config.data, config.stage.batch, shape=shape)
        held_out = pipeline.validation_batches(
            config.data, config.stage.batch, config.eval_batches, shape=shape
        )
        state = train(config, batches, held_out, hashes, quiet=quiet)
        if int(state.step) < config.steps:
            return False
        files.write_json(folder / COST, cost(config, folder, held_out[0]))
    missing = [name for name in measures if not (folder / f"{name}.safetensors").is_file()]
    if missing:
        probe = make_probe(config, folder, quiet)
        for name in missing:
            save_arrays(folder / f"{name}.safetensors", MEASURES[name](probe))
    return True


def make_probe(config: TrainConfig, folder: Path, quiet: bool = True) -> Probe:
    """The averaged weights of a finished run, with windows of every held-out clip."""
    stage: Any = config.stage
    shapes = jax.eval_shape(lambda: stage.init(jax.random.key(0))["model"])
    model = run_network(folder, shapes, stage.roles["model"], make_mesh((1, 1, 1), jax.devices()[:1]))
    networks = config.data.networks or str(release_folder.WEIGHTS / "mini")
    return Probe(stage, model, held_out_windows(config.data), networks, quiet)


@lru_cache(maxsize=1)
def held_out_windows(data: DataConfig) -> list[dict[str, Any]]:
    """`WINDOWS` batches (clips, ...), each with one window of every held-out clip, in the same order."""
    clips = len(pipeline.ConcatenatedRecords(data.validation_folder, "features"))
    return list(pipeline.validation_batches(replace(data, batch_size=clips), "features", WINDOWS))


def cost(config: TrainConfig, folder: Path, batch: dict[str, Any]) -> dict[str, Any]:
    """The cost of a run: parameters, FLOPs by our count and by XLA's, seconds per step, bytes of memory."""
    stage: Any = config.stage
    mesh = make_mesh(config.mesh)
    shapes = jax.eval_shape(lambda: create_state(config, jax.random.key(0)))
    state = abstract_like(shapes, state_sharding(shapes, state_roles(config), mesh))
    with mesh_context(mesh):  # as in the training loop, so the compilation cache has the program
        traced = make_step(config, state).trace(state, place_batch(batch, mesh))
        compiled = traced.lower().compile()
    memory: Any = compiled.memory_analysis()
    analysis: Any = compiled.cost_analysis()
    seconds = [row["time/useful"] for row in read_rows(folder / "metrics.jsonl") if "time/useful" in row]
    return {
        "parameters": count(state.params["model"]),
        "flops_step": matmul_cost(traced.jaxpr)[0],
        "flops_step_xla": float(analysis["flops"]),
        "flops_pass": denoiser.flops(stage.model),
        "seconds_step": float(np.median(seconds)),
        "seconds_training": float(np.sum(seconds)),
        "bytes_peak": int(memory.argument_size_in_bytes + memory.temp_size_in_bytes),
        "steps": config.steps,
        "threads": int(os.environ.get("PJRT_NPROC", os.cpu_count() or 1)),
        "device": jax.devices()[0].device_kind,
    }
