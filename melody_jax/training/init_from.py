"""Weights that a fresh run starts from: those of another run, or of a release (`--init_from`).

Where `params["base"]` exists (adapters, distillation) they go there, and what is added to it stays fresh.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from melody_jax import release
from melody_jax.config import TrainConfig
from melody_jax.config_json import difference, to_dict
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.sharding import is_stacked
from melody_jax.training import checkpoint
from melody_jax.training.export import run_network
from melody_jax.training.state import TrainState

COMPUTE_FIELDS = ("dtype", "remat", "dropout")
"""Fields of a network's config that say how it computes, not what its weights mean."""


def start_from(config: TrainConfig, state: TrainState, hashes: dict[str, str], mesh: Mesh) -> TrainState:
    """The fresh `state` with the network of `config.init_from`, every array placed as it was.

    `hashes` are those of the networks that made the run's data. What a release has only since `Stage.finish`
    (codebooks, means) is left out, for finishing fits it anew.

    Raises:
        UserError: there is no such network, it has another shape, or it learned from data of other networks.
    """
    stage = getattr(config.stage, "teacher", config.stage)
    part = "base" if "base" in state.params else "model"
    folder, name = _find(config.init_from, stage.name), stage.name
    if (folder / "config.json").is_file():
        described, theirs, _ = checkpoint.read_run(folder)
        _check(
            config, stage, described["stage"].get("class"), described["stage"].get("model"), theirs, hashes
        )
        network = run_network(folder, state.params[part], mesh)
    else:
        values, model, theirs = release.read_network(folder, name)
        _check(config, stage, type(stage).__name__, to_dict(model), theirs, hashes)
        network = _placed(values, state.params[part], f"{folder}: {name}")
    state = state._replace(params=state.params | {part: network})
    # a copy: the step is given both to write into
    return state if part == "base" else state._replace(ema=jax.tree.map(jnp.copy, network))


def _find(source: str, name: str) -> Path:
    """The run folder, or the folder of the released network `name`, that `source` says."""
    for folder in (Path(source), release.WEIGHTS / source):
        if (folder / "config.json").is_file() or (folder / f"{name}.json").is_file():
            return folder
    packaged = ", ".join(sorted(path.name for path in release.WEIGHTS.iterdir() if path.is_dir()))
    raise UserError(
        f"init_from {source}: not a run folder (it has no config.json), not a release with {name}.json, "
        f"and not one that is packaged ({packaged})"
    )


def _check(
    config: TrainConfig, stage: Any, kind: Any, model: Any, theirs: dict[str, str], hashes: dict[str, str]
) -> None:
    """Refuses another stage's network, another shape, and a network that learned from other features."""
    source, own = config.init_from, type(stage).__name__
    if kind != own:
        raise UserError(f"init_from {source} is a run of {kind}; this one is of {own}")
    fields = [
        f"{name} is {there} there and {here} here"
        for name, (there, here) in difference(model, stage.model).items()
        if name.rpartition(".")[2] not in COMPUTE_FIELDS
    ]
    if fields:
        raise UserError(f"init_from {source}: another network ({'; '.join(fields)}); set --stage.model alike")
    others = ", ".join(difference(theirs, hashes))
    if others:
        raise UserError(
            f"init_from {source}: learned from features of another {others} than this run's data; "
            "run `melody prepare` with the networks of that release"
        )


def _placed(values: Params, fresh: Params, what: str) -> Params:
    """NumPy `values` on the devices of the arrays `fresh`, which stay where a release has fewer blocks."""
    there = release.flatten(values)

    def place(path: str, leaf: jax.Array) -> jax.Array:
        value: np.ndarray | None = there.get(path)
        if value is None:
            raise UserError(f"{what} lacks {path}")
        if value.shape == leaf.shape:
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])
        if is_stacked(path) and value.shape[1:] == leaf.shape[1:] and len(value) < len(leaf):
            first = jax.jit(lambda leaf, value: leaf.at[: len(value)].set(value), out_shardings=leaf.sharding)
            return first(leaf, value)
        raise UserError(f"{what} has {path} of shape {value.shape}; this run needs {leaf.shape}")

    return release.unflatten({path: place(path, leaf) for path, leaf in release.flatten(fresh).items()})
