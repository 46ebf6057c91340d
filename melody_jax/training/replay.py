"""`melody replay --bundle runs/x/nonfinite/123`: does a step again whose numbers were not finite.

The bundle holds all that the step was computed from (`training/sentinel.py`). On the layout that the run had, the same
numbers come out; elsewhere sums are rounded in another order, which seldom matters to what is not finite.
"""

import dataclasses
import json
import math
import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy

from melody_jax.config import LoRAConfig
from melody_jax.config_json import from_dict
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.release import unflatten
from melody_jax.sharding import make_mesh, mesh_context, place_batch, state_sharding
from melody_jax.training.checkpoint import abstract_like
from melody_jax.training.digests import DIGEST
from melody_jax.training.export import stage_from_dict
from melody_jax.training.loop import accumulated
from melody_jax.training.lora import adapted
from melody_jax.training.sentinel import NORM, BadStep, gradient_norms, is_finite, not_finite
from melody_jax.training.stage import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Repeats a step whose loss or gradients were not finite."""

    bundle: str = ""
    """The step's folder, <workdir>/nonfinite/<step>."""
    mesh: tuple[int, int, int] = (1, 1, 1)
    """Devices on the axes (data, fsdp, tensor); the run's own gives its own bits."""
    locate: bool = True
    """Also runs the step operation by operation and names the first that gives NaN: slow, and only on one device."""


def replay(config: ReplayConfig) -> dict[str, float]:
    """Prints what the step gives, beside what the run noted, and returns its metrics.

    Raises:
        UserError: no such bundle, a damaged one, or a mesh that does not fit.
    """
    if not config.bundle:
        raise UserError("--bundle is missing; see melody replay --help")
    folder = Path(config.bundle).absolute()
    bundle, batch = _read(folder)
    described = bundle["config"]
    stage = adapted(stage_from_dict(described["stage"]), from_dict(LoRAConfig, described["lora"]))
    mesh = make_mesh(config.mesh, jax.devices()[: math.prod(config.mesh)] if min(config.mesh) > 0 else None)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    params = _restore(folder, abstract_like(shapes, state_sharding(shapes, mesh)))
    key = jax.random.fold_in(jax.random.key(described["seed"]), bundle["step"])

    def step(params: Params, batch: Batch) -> Any:
        grads, metrics = accumulated(
            stage, described["accumulate"], params, batch, key, jnp.int32(bundle["step"])
        )
        return metrics | gradient_norms(grads)

    with mesh_context(mesh):
        metrics = {
            name: float(value) for name, value in jax.jit(step)(params, place_batch(batch, mesh)).items()
        }
    _tell(bundle, batch, BadStep(bundle["step"], metrics))
    if config.locate and mesh.size == 1 and not is_finite(metrics):  # type: ignore[arg-type]
        print(_first_nan(step, params, batch))
    return metrics


def _read(folder: Path) -> tuple[dict[str, Any], Batch]:
    try:
        bundle = json.loads((folder / "bundle.json").read_text())
        batch = unflatten(safetensors.numpy.load((folder / "batch.safetensors").read_bytes()))
        missing = {"step", "config", "metrics", "records"} - bundle.keys()
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} is not the bundle of a step ({reason})") from None
    if missing:
        raise UserError(f"{folder / 'bundle.json'} lacks {', '.join(sorted(missing))}")
    return bundle, batch


def _restore(folder: Path, abstract: Any) -> Params:
    try:
        with ocp.StandardCheckpointer() as reader:
            return reader.restore(folder / "params", abstract)
    except Exception as error:  # Orbax and TensorStore raise many kinds for a file that is cut or missing
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{folder / 'params'} cannot be read ({reason})") from error


def _tell(bundle: dict[str, Any], batch: Batch, found: BadStep) -> None:
    noted = {
        name: math.nan if value is None else value
        for name, value in bundle["metrics"].items()
        if not name.startswith(DIGEST)  # of what the step saw, not of what it gave
    }
    equal = noted.keys() == found.metrics.keys() and all(
        _alike(noted[name], found.metrics[name]) for name in noted
    )
    print(f"after {found.step} steps: " + ("as the run noted" if equal else "NOT what the run noted"))
    for name, value in found.metrics.items():
        if name in ("loss", NORM) or not math.isfinite(value) or noted.get(name) != value:
            print(f"  {name:<32}{value:<14.6g}noted {noted.get(name, math.nan):.6g}")
    print(f"  gradients not finite: {', '.join(found.groups) or 'none'}")
    ill = [bundle["records"][i] for i in np.flatnonzero(not_finite(batch))]
    print(f"  records with values not finite: {', '.join(ill) or 'none'}")


def _alike(noted: float, found: float) -> bool:
    return noted == found or not (math.isfinite(noted) or math.isfinite(found))


def _first_nan(step: Any, params: Params, batch: Batch) -> str:
    """In words, where in our own code the first NaN comes from."""
    try:
        with jax.debug_nans(True):
            jax.block_until_ready(jax.jit(step)(params, batch))
    except FloatingPointError as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "melody_jax" in frame.filename]
        own = [frame for frame in own if Path(frame.filename) != Path(__file__)]
        place = (
            f" at {'/'.join(Path(own[-1].filename).parts[-2:])}:{own[-1].lineno}: {own[-1].line}"
            if own
            else ""
        )
        return f"  first: {str(error).splitlines()[0]}{place}"
    return (
        "  no operation gives NaN by itself: the numbers are infinite, or depend on how operations are fused"
    )
