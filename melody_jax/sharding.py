"""Where arrays live: one mesh of three axes, one table from parameter path to placement.

`data` splits the batch, `fsdp` splits batch and parameters, `tensor` splits the inner width of matrices.
Axes are Auto: placements are given for inputs and outputs, the compiler finds the rest.
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from melody_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# First match wins. A rule places the trailing axes of a leaf (stacked blocks keep their leading axis whole);
# a mesh axis that does not divide its array axis is left out.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(^|/)(scale|bias|codebooks?|latent_mean|latent_scale)$", ()),
    (r"(embedding|table|words|positions|prefix|semantic)$", ("tensor", "fsdp")),
    (r"(^|/)(out|down|o|output|project_out)/kernel$", ("tensor", "fsdp")),
    # adapters (training/lora.py): whole along the rank, else like the kernel they are added to
    (r"(^|/)(out|down|o|output|project_out)/kernel/lora_a$", ("tensor", None)),
    (r"(^|/)(out|down|o|output|project_out)/kernel/lora_b$", (None, "fsdp")),
    (r"/lora_a$", ("fsdp", None)),
    (r"/lora_b$", (None, "tensor")),
    (r"", ("fsdp", "tensor")),
)


def make_mesh(sizes: tuple[int, int, int], devices: list[Any] | None = None) -> Mesh:
    """A mesh over all devices. One size may be -1 and takes what is left.

    Of several TPU slices each holds whole `fsdp` and `tensor` groups: only `data` crosses the slow network.

    Raises:
        UserError: the sizes do not multiply to the number of devices, or the slices do not divide `data`.
    """
    devices = jax.devices() if devices is None else devices
    known = int(np.prod([size for size in sizes if size != -1]))
    filled = tuple(len(devices) // known if size == -1 else size for size in sizes) if known > 0 else sizes
    if sizes.count(-1) > 1 or min(filled) < 1 or int(np.prod(filled)) != len(devices):
        raise UserError(
            f"mesh {sizes} does not fit {len(devices)} devices; sizes multiply to that, one may be -1"
        )
    types, slices = (AxisType.Auto,) * 3, len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(filled, AXES, axis_types=types, devices=devices)
    if filled[0] % slices:
        raise UserError(f"mesh {filled} over {slices} slices: they must divide data, the first size")
    inside = (filled[0] // slices, *filled[1:])
    placed = create_hybrid_device_mesh(inside, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=types)


def mesh_context(mesh: Mesh) -> AbstractContextManager[Any]:
    """What is traced inside keeps the items of batches spread over the mesh (`constrain_batch`)."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh.size > 1 else nullcontext()


def constrain_batch(x: jax.Array, axis: int = 0) -> jax.Array:
    """x with its items, along `axis`, spread over the mesh in use (`sharding.py: using`); x without one.

    Said at every block: left alone, the compiler may follow the parameters' placement and compute each item everywhere.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in ("data", "fsdp") if name in mesh.auto_axes)
    spec = PartitionSpec(*[None] * axis, axes)
    return jax.lax.with_sharding_constraint(x, spec) if axes else x


def replicate(x: jax.Array) -> jax.Array:
    """x, all of it on every device of the mesh in use."""
    spec = PartitionSpec()
    return jax.lax.with_sharding_constraint(x, spec) if jax.sharding.get_abstract_mesh().auto_axes else x


def embed_lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table (V, D) for ids (B, ...): (B, ..., D), its items spread as `constrain_batch` does.

    Every device first gets the whole table: looked up in a part of it, the rows would come out split by their width,
    and turning that into a split by items is an all-to-all.
    """
    return constrain_batch(replicate(table)[ids])


def path_name(path: tuple[Any, ...]) -> str:
    """ "model/blocks/attention/kernel" from a key path of `jax.tree_util`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def is_stacked(path: str) -> bool:
    """Whether the leaf at this path is that of many blocks, along its first axis."""
    return re.search(r"blocks/\D", path) is not None


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The placement of one leaf; works for optimiser moments too, whose paths end like their parameter's."""
    if len(shape) < 2:
        return PartitionSpec()
    axes = next(axes for pattern, axes in RULES if re.search(pattern, path))
    spec: list[str | None] = [None] * len(shape)
    for offset, axis in enumerate(reversed(axes), start=1):
        if axis is not None and mesh.shape[axis] > 1 and shape[-offset] % mesh.shape[axis] == 0:
            spec[-offset] = axis
    return PartitionSpec(*spec) if any(spec) else PartitionSpec()


def state_sharding(shapes: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` for every leaf of a tree of arrays or `ShapeDtypeStruct`s."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, parameter_spec(path_name(path), leaf.shape, mesh)), shapes
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch of NumPy arrays, as global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def sharded_init(create: Callable[[jax.Array], Any], key: jax.Array, mesh: Mesh) -> Any:
    """`create(key)` with every array born where it lives: shapes, then shardings, then one jitted call."""
    shardings = state_sharding(jax.eval_shape(create, key), mesh)
    return jax.jit(create, out_shardings=shardings)(key)
