"""`melody train CONFIG [options]`: trains one network; the same command again resumes.

    melody train vae_tiny --data.folder corpus/train --steps 50

CONFIG is the name of a config that comes with the package or the path of a file. `melody train CONFIG --help` lists
every field. `melody train CONFIG --print-parameters` prints a table of all parameters and trains nothing.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from melody_jax import object_store, release_source
from melody_jax.config import TrainConfig, load_config
from melody_jax.data import pipeline
from melody_jax.errors import UserError
from melody_jax.python_file import docstring, shipped_names
from melody_jax.runtime import enable_compile_cache
from melody_jax.sharding import check_batch, make_mesh, reader
from melody_jax.text import read_tokenizer
from melody_jax.training.hosts import joined
from melody_jax.training.run_folder import check_path, local_run


def main(arguments: list[str]) -> None:
    """Reads the config and trains. Raises `UserError` on bad options or data."""
    if not arguments or arguments[0] in ("-h", "--help"):
        text = docstring(sys.modules[__name__])
        print(
            f"usage: melody train CONFIG [options]\n\n{text}\n\nConfigs: {', '.join(shipped_names('config'))}"
        )
        return
    if arguments[0].startswith("-"):
        raise UserError("the config is missing: melody train CONFIG [options]")
    if "--print-parameters" in arguments:
        from melody_jax.training.parameters import print_parameters

        print_parameters(load_config(arguments[0], [x for x in arguments[1:] if x != "--print-parameters"]))
        return
    enable_compile_cache()
    config = with_local_releases(load_config(arguments[0], arguments[1:]))
    with joined(config.hosts):
        run(config)


def with_local_releases(config: TrainConfig) -> TrainConfig:
    """The config with local copies of the releases, and of the run to start from, that it names on the hub or in a
    bucket. Raises `UserError` as `release_source.local_folder` and `local_run` do.
    """
    data = replace(config.data, networks=release_source.local_folder(config.data.networks))
    stage: Any = config.stage
    if getattr(stage, "networks", ""):
        stage = replace(stage, networks=release_source.local_folder(stage.networks))
    return replace(config, data=data, stage=stage, init_from=_local_start(config.init_from))


def _local_start(init_from: str) -> str:
    """The run folder or the release that a run starts from, on this machine."""
    if object_store.is_remote(init_from) and object_store.RemoteFolder(init_from).has("config.json"):
        return str(local_run(init_from))
    return release_source.local_folder(init_from)


def run(config: TrainConfig) -> None:
    """Opens the data, trains, and prints what was written."""
    from melody_jax.training.loop import train

    check_path(Path(config.workdir))
    if config.stage.vocabulary is not None:
        read_tokenizer(config.data.text_tokenizer, config.stage.vocabulary)
        config.stage.check_tokenizer(config.data.text_tokenizer)
    mesh = make_mesh(config.mesh)
    check_batch(config.data.batch_size, mesh, config.accumulate)
    hashes = pipeline.check_provenance(config.data, config.stage.batch) | config.stage.hashes
    data = config.data
    kind = config.stage.batch
    index, count = reader(mesh, jax.process_index())
    shape = config.stage.features
    batches = pipeline.TrainingBatches(data, kind, index, count, shape, config.stage.audio_format)
    held_out = pipeline.validation_batches(
        data, kind, config.eval_batches, index, count, shape, config.stage.audio_format
    )
    state = train(config, batches, held_out, hashes)
    if jax.process_index() == 0:
        print(_summary(config, int(state.step)))


def _summary(config: TrainConfig, step: int) -> str:
    """What the run has written, and the command to run next."""
    if step < config.steps:
        return (
            f"{config.stage.name}: stopped after step {step} of {config.steps}; the checkpoint is in "
            f"{config.workdir}/checkpoints/{step}; run the same command again to resume"
        )
    return (
        f"{config.stage.name}: trained {config.steps} steps; checkpoints and metrics are in {config.workdir}; "
        f"release the network with melody export --run {config.workdir} --out FOLDER"
    )
