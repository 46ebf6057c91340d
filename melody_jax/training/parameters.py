"""The table of a run's parameters: `melody train CONFIG --print-parameters`.

One line per parameter: path, shape, role, mesh axes of its array axes, bytes per device; then how it is trained (weight
decay, Muon with input and output axes), how its release stores it, and whether adapters are added to it by default.
"""

import math
import re
from collections import Counter
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from melody_jax import release
from melody_jax.config import OptimizerConfig, TrainConfig
from melody_jax.roles import Role
from melody_jax.sharding import make_mesh, parameter_spec
from melody_jax.training.lora import adapted
from melody_jax.training.state import is_decayed, muon_axes, state_roles, trained

HEADER = ("path", "shape", "role", "placement", "bytes/device", "decay", "optimiser", "stored", "adapter")
Row = tuple[str, ...]


def print_parameters(config: TrainConfig) -> None:
    """Prints the table for this machine's devices; builds shapes only, no arrays."""
    mesh = make_mesh(config.mesh)
    rows = parameter_rows(config, mesh)
    print(format_rows([HEADER, *rows]))
    total = sum(int(row[HEADER.index("bytes/device")]) for row in rows)
    print(
        f"{len(rows)} arrays, {total / 1e6:,.1f} MB of parameters per device on a mesh of {dict(mesh.shape)}"
    )


def parameter_rows(config: TrainConfig, mesh: Mesh | AbstractMesh) -> list[Row]:
    """One row per parameter, with the columns of `HEADER`."""
    stage = adapted(config.stage, config.lora)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    roles = release.flatten(state_roles(config)["params"])
    optimised = release.flatten(trained(shapes)).keys()
    return [
        _row(
            path,
            leaf,
            roles[path],
            mesh,
            _optimiser(config.optimizer, path, leaf, roles[path], path in optimised),
        )
        for path, leaf in release.flatten(shapes).items()
    ]


def _optimiser(config: OptimizerConfig, path: str, leaf: Any, role: Role, is_trained: bool) -> str:
    """How a parameter is updated; with Muon, the input axes and the output axis of its matrix."""
    if not is_trained:
        return "frozen"
    if role.kind == "tracked":
        return "average"
    muon = muon_axes(role, leaf.ndim)
    if not config.muon or path.startswith("discriminator/"):
        return "adamw"
    if muon is None:
        return "adam"
    inputs = ",".join(str(axis) for axis in range(int(role.stacked), leaf.ndim - 1))
    return f"muon {inputs}>{muon.output_axis}"


def _row(path: str, leaf: Any, role: Role, mesh: Mesh | AbstractMesh, optimiser: str) -> Row:
    spec = tuple(parameter_spec(role, leaf.shape, mesh))
    split = math.prod(mesh.shape[axis] for axis in spec if axis is not None)
    decays = optimiser not in ("frozen", "average", "adam") and is_decayed(role)
    return (
        path,
        "x".join(map(str, leaf.shape)) or "-",
        role.kind + (" stacked" if role.stacked else ""),
        ",".join(str(axis or "-") for axis in spec) or "-",
        str(leaf.size * leaf.dtype.itemsize // split),
        "decay" if decays else "-",
        optimiser,
        release.stored_type(leaf.shape, role) if path.startswith("model/") else "-",
        "lora" if role.lora and path.startswith("model/") else "-",
    )


def summarise(rows: list[Row]) -> list[Row]:
    """Rows that differ in the indices of their path only, joined: first column the count, indices written as `*`."""
    counts = Counter((re.sub(r"(?<=/)\d+(?=/)", "*", row[0]), *row[1:]) for row in rows)
    return [(str(count), *row) for row, count in counts.items()]


def format_rows(rows: list[Row]) -> str:
    """The rows as lines of aligned columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
