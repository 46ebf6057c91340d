"""What happens when a loss or a gradient is not finite: it is named, kept for `melody replay`, and dealt with.

The step itself halts the state (`TrainState.halted`), so that whenever the loop looks, the state is still the one that
the bad step began with. `<workdir>/nonfinite/<step>/` then holds all that the step was computed from:

  bundle.json         step, config, metrics (null where not finite), which gradients, the batch's records, the process
  batch.safetensors   all processes' rows
  params/             Orbax
"""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import safetensors.numpy
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from melody_jax import __version__
from melody_jax.config import TrainConfig
from melody_jax.config_json import to_dict
from melody_jax.data.pipeline import BatchIterator
from melody_jax.errors import Diverged
from melody_jax.models.functional import Params
from melody_jax.release import flatten
from melody_jax.sharding import place_batch
from melody_jax.training.checkpoint import Checkpoints, abstract_like, say
from melody_jax.training.stage import Batch, Metrics
from melody_jax.training.state import TrainState

NORM = "gradient_norm"


@dataclasses.dataclass(frozen=True)
class BadStep:
    """The first step whose numbers are not finite, and its metrics."""

    step: int
    metrics: dict[str, float]

    @property
    def groups(self) -> list[str]:
        """The innermost groups of parameters whose gradients are not finite."""
        bad = [
            name.removeprefix(f"{NORM}/") for name, value in self.metrics.items() if not math.isfinite(value)
        ]
        bad = [name for name in bad if f"{NORM}/{name}" in self.metrics]
        return [name for name in bad if not any(other.startswith(f"{name}/") for other in bad)]


def gradient_norms(grads: Params) -> Metrics:
    """Norms of gradients: "gradient_norm" of all, "gradient_norm/model" and so on of each network and each part of it.

    Gradients are a dict of networks, networks are dicts of parts.
    """
    norms: Metrics = {}
    for network, parts in grads.items():
        if isinstance(parts, dict):
            norms |= {f"{NORM}/{network}/{name}": optax.tree.norm(part) for name, part in parts.items()}
        norms[f"{NORM}/{network}"] = optax.tree.norm(parts)
    return norms | {NORM: optax.tree.norm(grads)}


def is_finite(metrics: Metrics) -> jax.Array:
    """() bool: loss and gradients are finite."""
    return jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics[NORM])


def not_finite(batch: Batch) -> np.ndarray:
    """(B,) bool: which rows of a batch hold values that are not finite."""
    return np.any(
        [~np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in jax.tree.leaves(batch)], axis=0
    )


class Sentinel:
    """Deals with bad steps as `TrainConfig.on_nonfinite` says."""

    def __init__(
        self, config: TrainConfig, checkpoints: Checkpoints, batches: BatchIterator, mesh: Mesh
    ) -> None:
        self._config, self._checkpoints, self._batches, self._mesh = config, checkpoints, batches, mesh
        self._positions: dict[int, dict[str, Any]] = {}
        self._met = 0

    def passing(self, step: int) -> None:
        """Remembers where in the data step `step` begins, for as long as the loop may not have looked at it."""
        self._positions[step] = self._batches.get_state()
        self._positions.pop(step - 2 * self._config.log_every - 1, None)

    def act(self, bad: BadStep, state: TrainState) -> TrainState:
        """Writes the bundle of a bad step and returns the state to go on with; the data stands after the bad batch.

        Raises:
            Diverged: the run is to stop, having saved the state before the step; or it went wrong too often.
        """
        folder, said = self._write(bad, state)
        policy, self._met = self._config.on_nonfinite, self._met + 1
        again = f"look at it: melody replay --bundle {folder}"
        if policy != "stop" and self._met > self._config.nonfinite_limit:
            raise Diverged(
                f"{said}, and nonfinite_limit {self._config.nonfinite_limit} is reached; {again}", bad.step
            )
        if policy == "stop":
            self._checkpoints.save(placed(state, bad.step), self._positions[bad.step])
            raise Diverged(
                f"{said}; the state before it is saved, to go on with --on_nonfinite skip or a lower learning rate "
                f"in a new run; {again}",
                bad.step,
            )
        if policy == "rollback":
            if self._checkpoints.latest is None:
                raise Diverged(f"{said}, and there is no checkpoint yet to roll back to; {again}", bad.step)
            abstract = abstract_like(state, jax.tree.map(lambda leaf: leaf.sharding, state))
            state, _ = self._checkpoints.restore(abstract)
            self._say(f"{said}; back to step {int(state.step)} and on with the data after it")
            return state
        self._say(f"{said}; skipped")
        return placed(state, bad.step + 1)

    def _write(self, bad: BadStep, state: TrainState) -> tuple[Path, str]:
        """The bundle's folder, and what is wrong in words. All processes take part, the first one writes."""
        position = self._positions[bad.step]
        self._batches.set_state(position)
        rows = next(self._batches)
        whole = multihost_utils.process_allgather(place_batch(rows, self._mesh), tiled=True)
        hosts = np.flatnonzero(multihost_utils.process_allgather(np.array([not_finite(rows).any()])))
        records = self._batches.records_of(position)
        ill = [records[i] for i in np.flatnonzero(not_finite(whole))]
        folder = Path(self._config.workdir).absolute() / "nonfinite" / str(bad.step)
        where = (
            f"the batch of process {', '.join(map(str, hosts))} has such values"
            if ill
            else "the batch is finite"
        )
        said = (
            f"after {bad.step} steps the loss is {bad.metrics['loss']:.4g}, not finite are the gradients of "
            f"{_some(bad.groups) or 'nothing'}; {where} (records {_some(ill or records)})"
        )
        if jax.process_index() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            arrays = {name: np.ascontiguousarray(value) for name, value in flatten(whole).items()}
            (folder / "batch.safetensors").write_bytes(safetensors.numpy.save(arrays))
            known = {name: value if math.isfinite(value) else None for name, value in bad.metrics.items()}
            bundle = {
                "step": bad.step,
                "config": to_dict(self._config),
                "metrics": known,
                "groups": bad.groups,
            }
            bundle |= {"records": records, "processes": hosts.tolist(), "mesh": dict(self._mesh.shape)}
            bundle |= {"versions": {"melody_jax": __version__, "jax": jax.__version__}}
            (folder / "bundle.json").write_text(json.dumps(bundle, indent=2) + "\n")
        multihost_utils.sync_global_devices("bundle")
        with ocp.StandardCheckpointer() as writer:
            writer.save(folder / "params", state.params)
        return folder, said

    def _say(self, line: str) -> None:
        if jax.process_index() == 0:
            say(line)


def placed(state: TrainState, step: int) -> TrainState:
    """The state at another step, and no longer halted."""
    fresh = {"step": np.int32(step), "halted": np.zeros((), bool)}
    return state._replace(
        **{name: jax.device_put(x, getattr(state, name).sharding) for name, x in fresh.items()}
    )


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
