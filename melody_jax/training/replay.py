"""`melody replay --bundle runs/x/nonfinite/123`: repeats a training step that was not finite.

The bundle holds everything that the step was computed from (`training/nonfinite.py`). On the mesh of the run the
numbers are the same; on another mesh sums are rounded in another order, which seldom changes what is not finite.
"""

import dataclasses
import math
import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from melody_jax import files
from melody_jax.config import LoRAConfig
from melody_jax.config_json import from_dict
from melody_jax.errors import UserError, first_line
from melody_jax.models.functional import Params
from melody_jax.models.products import product_precision
from melody_jax.options import option
from melody_jax.release import unflatten
from melody_jax.roles import gather, without
from melody_jax.sharding import constrain_state, make_mesh, mesh_context, place_batch, state_sharding
from melody_jax.tensor_file import parse_tensors
from melody_jax.training.checkpoint import abstract_like
from melody_jax.training.digests import DIGEST
from melody_jax.training.export import stage_from_dict
from melody_jax.training.loop import accumulated
from melody_jax.training.lora import adapted
from melody_jax.training.nonfinite import NORM, BadStep, gradient_norms, not_finite
from melody_jax.training.stage import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Repeats a step whose loss or gradients were not finite."""

    bundle: str = option("", group="what to replay")
    """The step's folder, <workdir>/nonfinite/<step>."""
    mesh: tuple[int, int, int] = option((1, 1, 1), group="how to run")
    """Devices on the axes (data, fsdp, tensor); the mesh of the run reproduces its numbers exactly."""
    locate: bool = True
    """Also runs the step operation by operation and names the first that returns NaN: slow, and only on one device."""


def replay(config: ReplayConfig) -> dict[str, float]:
    """Prints the step's metrics beside those that the run recorded, and returns them.

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
    placed = gather(stage.roles) if described.get("zero_stage") == 1 else stage.roles
    params = _restore(folder, abstract_like(shapes, state_sharding(shapes, placed, mesh)))
    key = jax.random.fold_in(jax.random.key(described["seed"]), bundle["step"])

    def step(params: Params, batch: Batch) -> Any:
        grads, metrics = accumulated(
            stage, described["accumulate"], params, batch, key, jnp.int32(bundle["step"])
        )
        grads = constrain_state(grads, stage.roles)
        return metrics | gradient_norms(without("tracked", grads, stage.roles))

    with mesh_context(mesh), product_precision(described["matmul_precision"]):
        metrics = {
            name: float(value) for name, value in jax.jit(step)(params, place_batch(batch, mesh)).items()
        }
    _report(bundle, batch, BadStep(bundle["step"], metrics))
    if config.locate and mesh.size == 1 and not all(math.isfinite(metrics[name]) for name in ("loss", NORM)):
        print(_first_nan(step, params, batch))
    return metrics


def _read(folder: Path) -> tuple[dict[str, Any], Batch]:
    try:
        bundle = files.read_json(folder / "bundle.json")
        batch = unflatten(parse_tensors(files.read_bytes(folder / "batch.safetensors"), "batch.safetensors"))
        missing = {"step", "config", "metrics", "records"} - bundle.keys()
    except (UserError, AttributeError) as error:
        raise UserError(f"{folder} is not the bundle of a step ({error})") from None
    if missing:
        raise UserError(f"{folder / 'bundle.json'} lacks {', '.join(sorted(missing))}")
    return bundle, batch


def _restore(folder: Path, abstract: Any) -> Params:
    try:
        with ocp.StandardCheckpointer() as reader:
            return reader.restore(folder / "params", abstract)
    except Exception as error:  # Orbax and TensorStore raise many types for a truncated or missing file
        reason = first_line(error)
        raise UserError(f"{folder / 'params'} cannot be read ({reason})") from error


def _report(bundle: dict[str, Any], batch: Batch, repeated: BadStep) -> None:
    recorded = {
        name: math.nan if value is None else value
        for name, value in bundle["metrics"].items()
        if not name.startswith(DIGEST)  # a digest is of the step's inputs
    }
    same = recorded.keys() == repeated.metrics.keys() and all(
        _is_same(recorded[name], repeated.metrics[name]) for name in recorded
    )
    print(
        f"after {repeated.step} steps: "
        + ("the same metrics as in the run" if same else "NOT the metrics of the run")
    )
    for name, value in repeated.metrics.items():
        if name in ("loss", NORM) or not math.isfinite(value) or recorded.get(name) != value:
            print(f"  {name:<32}{value:<14.6g}in the run {recorded.get(name, math.nan):.6g}")
    print(f"  gradients not finite: {', '.join(repeated.groups) or 'none'}")
    bad_records = [bundle["records"][i] for i in np.flatnonzero(not_finite(batch))]
    print(f"  records with values not finite: {', '.join(bad_records) or 'none'}")


def _is_same(recorded: float, repeated: float) -> bool:
    return recorded == repeated or not (math.isfinite(recorded) or math.isfinite(repeated))


def _first_nan(step: Any, params: Params, batch: Batch) -> str:
    """The operation that returns the first NaN, and the line of this package that it comes from."""
    try:
        with jax.debug_nans(True):
            jax.block_until_ready(jax.jit(step)(params, batch))
    except FloatingPointError as error:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "melody_jax" in frame.filename and Path(frame.filename) != Path(__file__)
        ]
        location = ""
        if frames:
            file = "/".join(Path(frames[-1].filename).parts[-2:])
            location = f" at {file}:{frames[-1].lineno}: {frames[-1].line}"
        return f"  first: {str(error).splitlines()[0]}{location}"
    return (
        "  no single operation returns NaN: the numbers are infinite, or depend on how operations are fused"
    )
