"""Initial weights of a fresh run, from another run or from a release (`--init-from`).

If `params["base"]` exists (adapters, distillation), they go there, and `params["model"]` stays fresh.

A network with control tokens, or one that follows a melody, may start from a release without. What it has for them has
almost no effect at first: its embeddings, or the gain of the network behind them, are zero. A language model attends to
the places of control tokens, which changes its predictions a little (0.002 nats for `mini`).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from melody_jax import release, release_folder
from melody_jax.config import TrainConfig
from melody_jax.config_json import difference, network_difference, to_dict
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.roles import Roles
from melody_jax.training.export import run_network
from melody_jax.training.run_folder import read_run
from melody_jax.training.stage import Stage
from melody_jax.training.state import TrainState

GAINS = ("controls", "melody_span")
"""Fields of a network's config that its source may lack."""


def load_initial_weights(
    config: TrainConfig, state: TrainState, hashes: dict[str, str], mesh: Mesh
) -> TrainState:
    """The fresh `state` with the weights of `config.init_from`, every array placed as before.

    `hashes` are those of the networks that made the run's data. Parameters that `Stage.finish` adds to a release
    (codebooks, means) are left out, because finishing fits them again.

    Raises:
        UserError: there is no such network, its shape differs, or it was trained on features of other networks.
    """
    stage = config.stage.teacher or config.stage
    part = "base" if "base" in state.params else "model"
    name = stage.name
    folder = _find(config.init_from, name)
    check = partial(_check, config, stage, hashes)
    if (folder / "config.json").is_file():
        described, source_hashes, _ = read_run(folder)
        source_stage = described["stage"]
        check(source_stage.get("class"), source_stage.get("model"), source_hashes)
        network = run_network(folder, state.params[part], stage.roles["model"], mesh)
    else:
        values, model, source_hashes = release.read_network(folder, name)
        gains = [name for name in GAINS if part == "model" and not getattr(model, name, None)]
        check(type(stage).__name__, to_dict(model), source_hashes, gains=gains)
        network = _placed(values, state.params[part], stage.roles["model"], f"{folder}: {name}")
    average = state.ema if part == "base" else jax.tree.map(_copy_like, network, state.ema)
    network = jax.tree.map(
        lambda leaf, fresh: jax.device_put(leaf, fresh.sharding), network, state.params[part]
    )
    return state._replace(params=state.params | {part: network}, ema=average)


def _copy_like(leaf: jax.Array, placed: jax.Array) -> jax.Array:
    """A copy, because the training step donates the average and the parameters, placed like another array."""
    return jnp.copy(jax.device_put(leaf, placed.sharding))


def _find(source: str, name: str) -> Path:
    """The run folder, or the folder of the released network `name`, that `source` names."""
    for folder in (Path(source), release_folder.WEIGHTS / source):
        if (folder / "config.json").is_file() or release_folder.has_network(folder, name):
            return folder
    folders = sorted(path for path in release_folder.WEIGHTS.iterdir() if path.is_dir())
    packaged = ", ".join(path.name for path in folders if release_folder.has_network(path, name))
    raise UserError(
        f"init_from {source}: it must be a run folder (with config.json), a release (with {name}.json) "
        f"or a packaged release ({packaged})"
    )


def _check(
    config: TrainConfig,
    stage: Stage,
    hashes: dict[str, str],
    source_class: Any,
    source_model: Any,
    source_hashes: dict[str, str],
    *,
    gains: Sequence[str] = (),
) -> None:
    """Refuses the network of another stage, another shape, and a network that was trained on other features.

    gains: those of `GAINS` that its source lacks.
    """
    source = config.init_from
    expected = type(stage).__name__
    if source_class != expected:
        raise UserError(f"init_from {source} is a run of {source_class}; it must be a run of {expected}")
    fields = [
        f"{name} is {source_value} there and {value} here"
        for name, (source_value, value) in network_difference(source_model, stage.model).items()
        if name.partition(".")[0] not in gains
    ]
    if fields:
        raise UserError(f"init_from {source}: another network ({'; '.join(fields)}); set --stage.model alike")
    networks = ", ".join(
        difference(release.needed(stage.name, source_hashes), release.needed(stage.name, hashes))
    )
    if networks:
        raise UserError(
            f"init_from {source}: trained on features of another {networks} than this run's data; "
            "run `melody prepare` with the networks of that release"
        )


def _placed(values: Params, fresh: Params, roles: Roles, source: str) -> Params:
    """NumPy `values` placed like the arrays `fresh`; where a release has fewer blocks, the last blocks stay fresh.

    What `GAINS` that the release lacks add to the network is zero.
    """
    arrays = release.flatten(values)
    stacked = {path: role.stacked for path, role in release.flatten(roles).items()}

    def place(path: str, leaf: jax.Array) -> jax.Array:
        value: np.ndarray | None = arrays.get(path)
        if value is None and path.startswith(("control/", "control_table")):
            return jnp.zeros_like(leaf, device=leaf.sharding) if path == "control/norm/scale" else leaf
        if value is None and path == "melody":  # fresh ones are zero
            return leaf
        if value is not None and path == "prefix" and len(value) < len(leaf):
            value = np.pad(value, ((0, len(leaf) - len(value)), (0, 0)))
        if value is None:
            raise UserError(f"{source} lacks {path}")
        if value.shape == leaf.shape:
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])
        if stacked[path] and value.shape[1:] == leaf.shape[1:] and len(value) < len(leaf):
            set_first = jax.jit(
                lambda leaf, value: leaf.at[: len(value)].set(value), out_shardings=leaf.sharding
            )
            return set_first(leaf, value)
        raise UserError(f"{source} has {path} of shape {value.shape}; this run needs {leaf.shape}")

    return release.unflatten({path: place(path, leaf) for path, leaf in release.flatten(fresh).items()})
