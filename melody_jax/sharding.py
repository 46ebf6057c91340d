"""Placement of arrays: one mesh of three axes, and one table from a parameter's role to its placement.

`data` splits the batch, `fsdp` splits batch and parameters, `tensor` splits the inner width of matrices.
Axes are Auto: inputs and outputs have explicit placements, the compiler derives the rest.
"""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from melody_jax.errors import UserError
from melody_jax.roles import Kind, Role, Roles, find_role

AXES = ("data", "fsdp", "tensor")
GATHERED = "gathered kernel"
"""Name of what `gather_kernel` returns, for rematerialisation policies."""

PLACEMENT: dict[Kind, tuple[str | None, str | None]] = {
    "embedding": ("tensor", "fsdp"),
    "column": ("fsdp", "tensor"),
    "row": ("tensor", "fsdp"),
    "conv": ("fsdp", "tensor"),
    "head": ("fsdp", "tensor"),
    "weight": ("fsdp", "tensor"),
    # adapters: not split along the rank, otherwise like their kernel
    "column_lora_a": ("fsdp", None),
    "column_lora_b": (None, "tensor"),
    "row_lora_a": ("tensor", None),
    "row_lora_b": (None, "fsdp"),
}
"""Mesh axes of the last two array axes; arrays of other roles are replicated. A mesh axis that does not divide its
array axis is left out."""


def make_mesh(sizes: tuple[int, int, int], devices: list[Any] | None = None) -> Mesh:
    """A mesh over all devices. One size may be -1: it takes the remaining devices.

    With several TPU slices, each slice contains complete `fsdp` and `tensor` groups: only `data` crosses the slow
    network between slices.

    Raises:
        UserError: the sizes do not multiply to the number of devices, or the slices do not divide `data`.
    """
    devices = jax.devices() if devices is None else devices
    given = int(np.prod([size for size in sizes if size != -1]))
    filled = tuple(len(devices) // given if size == -1 else size for size in sizes) if given > 0 else sizes
    if sizes.count(-1) > 1 or min(filled) < 1 or int(np.prod(filled)) != len(devices):
        raise UserError(
            f"mesh {sizes} does not fit {len(devices)} devices; the sizes must multiply to that number, one may be -1"
        )
    types = (AxisType.Auto,) * 3
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(filled, AXES, axis_types=types, devices=devices)
    if filled[0] % slices:
        raise UserError(
            f"mesh {filled} over {slices} slices: the number of slices must divide data, the first size"
        )
    per_slice = (filled[0] // slices, *filled[1:])
    grid = create_hybrid_device_mesh(per_slice, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=types)


def mesh_context(mesh: Mesh) -> AbstractContextManager[Any]:
    """Within this context, traced code spreads the items of batches over the mesh (`constrain_batch`)."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh.size > 1 else nullcontext()


def constrain_batch(x: jax.Array, axis: int = 0) -> jax.Array:
    """x with its items (along `axis`) spread over the mesh of `mesh_context`; x unchanged outside of that context.

    Every block applies this. Otherwise the compiler may follow the placement of the parameters and compute each item on
    every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in ("data", "fsdp") if name in mesh.auto_axes)
    spec = PartitionSpec(*[None] * axis, axes)
    return jax.lax.with_sharding_constraint(x, spec) if axes else x


def replicate(x: jax.Array) -> jax.Array:
    """x with a full copy on every device of the mesh of `mesh_context`; x unchanged outside of that context."""
    spec = PartitionSpec()
    return jax.lax.with_sharding_constraint(x, spec) if jax.sharding.get_abstract_mesh().auto_axes else x


def embed_lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table (V, D) for ids (B, ...): (B, ..., D), with items spread as `constrain_batch` does.

    Every device first gathers the full table. A lookup in a shard would return rows split by width, and resharding
    those by items needs an all-to-all.
    """
    return constrain_batch(replicate(table)[ids])


def path_names(path: jax.tree_util.KeyPath) -> tuple[str, ...]:
    """("model", "blocks", "attention", "kernel") from a key path of `jax.tree_util`."""
    return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def path_name(path: jax.tree_util.KeyPath) -> str:
    """ "model/blocks/attention/kernel" from a key path of `jax.tree_util`."""
    return "/".join(path_names(path))


def parameter_spec(role: Role | None, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The placement of one array; an array without a role, or with fewer than two axes, is replicated."""
    if role is None or role.kind not in PLACEMENT or len(shape) < 2:
        return PartitionSpec()
    spec: list[str | None] = [None] * len(shape)
    for offset, axis in enumerate(reversed(PLACEMENT[role.kind]), start=1):
        if axis is None or (axis == "fsdp" and role.gathered):
            continue
        if mesh.shape[axis] > 1 and shape[-offset] % mesh.shape[axis] == 0:
            spec[-offset] = axis
    return PartitionSpec(*spec) if any(spec) else PartitionSpec()


def state_sharding(shapes: Any, roles: Roles, mesh: Mesh) -> Any:
    """A `NamedSharding` for every leaf of a tree of arrays or `ShapeDtypeStruct`s.

    A leaf has the role of the parameter whose path its own path ends with; other leaves are replicated.
    """

    def place(path: jax.tree_util.KeyPath, leaf: Any) -> NamedSharding:
        role = find_role(roles, path_names(path))
        return NamedSharding(mesh, parameter_spec(role, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, shapes)


def gather_kernel(kernel: jax.Array, role: Role) -> jax.Array:
    """A kernel of which each device of the mesh axis `fsdp` has all; the kernel unchanged outside of `mesh_context`.

    Left to itself, the compiler gathers a kernel anew for each of several products with it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.auto_axes or mesh.shape["fsdp"] == 1:
        return kernel
    spec = parameter_spec(dataclasses.replace(role, gathered=True), kernel.shape, mesh)
    return checkpoint_name(jax.lax.with_sharding_constraint(kernel, spec), GATHERED)


def constrain_state(tree: Any, roles: Roles) -> Any:
    """A tree whose leaves are placed as `state_sharding` does; the tree unchanged outside of `mesh_context`."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.auto_axes:
        return tree

    def place(path: jax.tree_util.KeyPath, leaf: Any) -> jax.Array:
        spec = parameter_spec(find_role(roles, path_names(path)), leaf.shape, mesh)
        return jax.lax.with_sharding_constraint(leaf, spec)

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def reader(mesh: Mesh, process: int) -> tuple[int, int]:
    """Which reader of the batch a process is, and the number of readers.

    Readers are numbered by the places of their devices on the `data` and `fsdp` axes. Processes that a `tensor` axis
    spans hold copies of the same rows: they are one reader.

    Raises:
        UserError: the processes share some of their rows but not all, or hold unequal numbers of rows.
    """
    return _readers(mesh)[process]


@lru_cache(maxsize=8)
def _readers(mesh: Mesh) -> dict[int, tuple[int, int]]:
    """Process -> (reader, number of readers)."""
    places: dict[int, set[int]] = {}
    rows = mesh.devices.reshape(-1, mesh.shape["tensor"])
    for place, devices in enumerate(rows):
        for device in devices:
            places.setdefault(device.process_index, set()).add(place)
    distinct = sorted({tuple(sorted(group)) for group in places.values()})
    if sum(len(group) for group in distinct) != len(rows) or len({len(group) for group in distinct}) > 1:
        raise UserError(
            f"mesh {tuple(mesh.shape.values())} over {len(places)} processes: processes share some of their items but "
            "not all; let the devices of a process divide tensor, or tensor divide them"
        )
    return {
        process: (distinct.index(tuple(sorted(group))), len(distinct)) for process, group in places.items()
    }


def check_batch(size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises `UserError` unless `accumulate` parts of a batch divide over the mesh's data and fsdp axes."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = ways * accumulate
    if size >= 1 and size % unit == 0:
        return
    nearest = sorted({max(size // unit, 1) * unit, (max(size, 0) // unit + 1) * unit})
    parts = f" in {accumulate} parts" if accumulate > 1 else ""
    raise UserError(
        f"batch size {size}{parts} does not divide over mesh {tuple(mesh.shape.values())}: it must be a multiple of "
        f"{unit}; the nearest are {' and '.join(map(str, nearest))}"
    )


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Global arrays, split over the mesh, from this process's rows of a batch of NumPy arrays (see `reader`)."""
    sharding = batch_sharding(mesh)
    readers = reader(mesh, jax.process_index())[1]

    def place(rows: Any) -> jax.Array:
        rows = np.asarray(rows)
        return jax.make_array_from_process_local_data(
            sharding, rows, global_shape=(readers * len(rows), *rows.shape[1:])
        )

    return jax.tree.map(place, batch)


def sharded_init(create: Callable[[jax.Array], Any], roles: Roles, key: jax.Array, mesh: Mesh) -> Any:
    """`create(key)` with every array created on its devices: shapes, then shardings, then one jitted call."""
    shardings = state_sharding(jax.eval_shape(create, key), roles, mesh)
    return jax.jit(create, out_shardings=shardings)(key)
