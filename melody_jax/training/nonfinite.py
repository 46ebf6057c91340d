"""Handling of a loss or gradient that is not finite: it is reported, stored for `melody replay`, and skipped or not.

The step itself halts the state (`TrainState.halted`): whenever the loop looks, the state is still the one before the
bad step. `<workdir>/nonfinite/<step>/` then holds everything that the step was computed from:

  bundle.json         step, config, metrics (null where not finite), which gradients, the batch's records, the process
  batch.safetensors   the rows of all processes
  params/             Orbax
"""

import dataclasses
import math
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import safetensors.numpy
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from melody_jax import __version__, files
from melody_jax.config import TrainConfig
from melody_jax.config_json import to_dict
from melody_jax.data.pipeline import BatchIterator
from melody_jax.errors import Diverged
from melody_jax.mirror import Mirror
from melody_jax.models.functional import Params
from melody_jax.release import flatten
from melody_jax.sharding import place_batch
from melody_jax.training.checkpoint import Checkpoints, abstract_like
from melody_jax.training.notes import print_note
from melody_jax.training.remote_checkpoints import library_path
from melody_jax.training.stage import Batch, Metrics
from melody_jax.training.state import TrainState

NORM = "gradient_norm"


@dataclasses.dataclass(frozen=True)
class BadStep:
    """The first step with a loss or gradient that is not finite, and its metrics."""

    step: int
    metrics: dict[str, float]

    @property
    def groups(self) -> list[str]:
        """The innermost groups of parameters whose gradients are not finite."""
        prefix = f"{NORM}/"
        bad = [
            name.removeprefix(prefix)
            for name, value in self.metrics.items()
            if name.startswith(prefix) and not math.isfinite(value)
        ]
        return [name for name in bad if not any(other.startswith(f"{name}/") for other in bad)]


def gradient_norms(grads: Params) -> Metrics:
    """Gradient norms: "gradient_norm", "gradient_norm/<network>" and "gradient_norm/<network>/<part>".

    Gradients are a dict of networks, networks are dicts of parts.
    """
    norms: Metrics = {}
    for network, parts in grads.items():
        if isinstance(parts, dict):
            norms |= {f"{NORM}/{network}/{name}": optax.tree.norm(part) for name, part in parts.items()}
        norms[f"{NORM}/{network}"] = optax.tree.norm(parts)
    return norms | {NORM: optax.tree.norm(grads)}


def is_finite(metrics: Metrics) -> jax.Array:
    """() bool: whether loss and gradients are finite."""
    return jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics[NORM])


def not_finite(batch: Batch) -> np.ndarray:
    """(B,) bool: rows of a batch with values that are not finite."""
    return np.any(
        [~np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in jax.tree.leaves(batch)], axis=0
    )


class NonfiniteHandler:
    """Handles bad steps according to `TrainConfig.on_nonfinite`."""

    def __init__(
        self,
        config: TrainConfig,
        workdir: Mirror,
        checkpoints: Checkpoints,
        batches: BatchIterator,
        mesh: Mesh,
    ) -> None:
        self._config = config
        self._workdir = workdir
        self._checkpoints = checkpoints
        self._batches = batches
        self._mesh = mesh
        self._positions: dict[int, dict[str, Any]] = {}
        self._count = 0

    def record_position(self, step: int) -> None:
        """Records where in the data step `step` begins, until the loop has certainly looked at its metrics."""
        self._positions[step] = self._batches.get_state()
        self._positions.pop(step - 2 * self._config.log_every - 1, None)

    def handle(self, bad: BadStep, state: TrainState) -> TrainState:
        """Writes the bundle of a bad step and returns the state to continue from; the data stands after the bad batch.

        Raises:
            Diverged: the policy is to stop, after saving the state before the step; or there were too many bad steps.
        """
        folder, problem = self._write_bundle(bad, state)
        policy = self._config.on_nonfinite
        self._count += 1
        replay = f"inspect it with melody replay --bundle {folder}"
        if policy != "stop" and self._count > self._config.nonfinite_limit:
            raise Diverged(
                f"{problem}; this exceeds nonfinite_limit {self._config.nonfinite_limit}; {replay}", bad.step
            )
        if policy == "stop":
            self._checkpoints.save(at_step(state, bad.step), self._positions[bad.step])
            raise Diverged(
                f"{problem}; the state before it is saved: continue with --on-nonfinite skip, or use a lower "
                f"learning rate in a new run; {replay}",
                bad.step,
            )
        if policy == "rollback":
            if self._checkpoints.latest is None:
                raise Diverged(f"{problem}, and there is no checkpoint to roll back to; {replay}", bad.step)
            abstract = abstract_like(state, jax.tree.map(lambda leaf: leaf.sharding, state))
            state, _ = self._checkpoints.restore(abstract)
            self._note(f"{problem}; rolled back to step {int(state.step)}, continuing with the data after it")
            return state
        self._note(f"{problem}; skipped")
        return at_step(state, bad.step + 1)

    def _write_bundle(self, bad: BadStep, state: TrainState) -> tuple[str, str]:
        """The bundle's path, and a description of the problem. All processes take part, the first one writes."""
        position = self._positions[bad.step]
        self._batches.set_state(position)
        rows = next(self._batches)
        batch = multihost_utils.process_allgather(place_batch(rows, self._mesh), tiled=True)
        processes = np.flatnonzero(multihost_utils.process_allgather(np.array([not_finite(rows).any()])))
        records = self._batches.records_of(position)
        bad_records = [records[i] for i in np.flatnonzero(not_finite(batch))]
        name = f"nonfinite/{bad.step}"
        folder = self._workdir.folder.absolute() / name
        if jax.process_index() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            arrays = {name: np.ascontiguousarray(value) for name, value in flatten(batch).items()}
            files.write_bytes(folder / "batch.safetensors", safetensors.numpy.save(arrays))
            bundle = {
                "step": bad.step,
                "config": to_dict(self._config),
                "metrics": {name: x if math.isfinite(x) else None for name, x in bad.metrics.items()},
                "groups": bad.groups,
                "records": records,
                "processes": processes.tolist(),
                "mesh": dict(self._mesh.shape),
                "versions": {"melody_jax": __version__, "jax": jax.__version__},
            }
            files.write_json(folder / "bundle.json", bundle, indent=2)
        multihost_utils.sync_global_devices("bundle")
        with ocp.StandardCheckpointer() as writer:
            target = library_path(self._workdir.folder, self._workdir.remote, f"{name}/params")
            writer.save(target, state.params, force=True)
        path = str(folder) if self._workdir.remote is None else f"{self._workdir.remote.url}/{name}"
        return path, _describe(bad, records, bad_records, processes.tolist())

    def _note(self, line: str) -> None:
        if jax.process_index() == 0:
            print_note(line)


def _describe(bad: BadStep, records: list[str], bad_records: list[str], processes: list[int]) -> str:
    """Loss, gradients and records of a bad step, in words."""
    loss = f"after {bad.step} steps the loss is {bad.metrics['loss']:.4g}"
    gradients = f"the gradients of {_first_few(bad.groups) or 'no parameter'} are not finite"
    if bad_records:
        data = f"the batch of process {', '.join(map(str, processes))} has values that are not finite"
    else:
        data = "the batch is finite"
    return f"{loss} and {gradients}; {data} (records {_first_few(bad_records or records)})"


def at_step(state: TrainState, step: int) -> TrainState:
    """The state at another step, and no longer halted."""
    return state._replace(
        step=jax.device_put(np.int32(step), state.step.sharding),
        halted=jax.device_put(np.zeros((), bool), state.halted.sharding),
    )


def _first_few(names: list[str], count: int = 8) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
