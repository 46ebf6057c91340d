"""The role of each parameter, declared once where the parameter is created: `nnx.Param(value, role=roles.NORM)`.

Sharding (sharding.py), weight decay and Muon (training/state.py), stored types (release.py) and adapters
(training/lora.py) read the role. `models/functional.py: roles` collects the roles of a network.
"""

import dataclasses
from typing import Any, Literal

Kind = Literal[
    "embedding", "column", "row", "conv", "head", "weight", "norm", "bias", "vector", "codebook", "tracked",
    "statistic", "column_lora_a", "column_lora_b", "row_lora_a", "row_lora_b",
]  # fmt: skip
"""
embedding   table with one row per token, code or position
column      kernel (inputs, outputs) whose outputs are split over devices: the first matrix of a pair, or a single one
row         kernel (inputs, outputs) whose inputs are split over devices: the second matrix of a pair
conv        kernel (taps ..., inputs, outputs) of a convolution
head        matrix (inputs, outputs) into the network's output space
weight      other parameter with two or more axes
norm        gain of a norm or of a layer
bias        bias of a layer
vector      other parameter with one axis
codebook    centroids, fitted after training
tracked     moving average that training keeps: its "gradient" is its value minus the new one, and is applied as it is
statistic   mean or scale of the data, fitted after training
column_lora_a, column_lora_b, row_lora_a, row_lora_b
            the two factors of an adapter of a column or row kernel
"""


@dataclasses.dataclass(frozen=True)
class Role:
    """The role of one parameter."""

    kind: Kind
    lora: bool = False
    """Whether it is a projection of attention or of a feed-forward layer, which gets an adapter by default."""
    stacked: bool = False
    """Whether the first axis stacks identical blocks."""
    gathered: bool = False
    """Whether each device of the mesh axis `fsdp` stores the whole array."""


EMBEDDING = Role("embedding")
COLUMN = Role("column")
ROW = Role("row")
CONV = Role("conv")
HEAD = Role("head")
WEIGHT = Role("weight")
NORM = Role("norm")
BIAS = Role("bias")
VECTOR = Role("vector")
CODEBOOK = Role("codebook")
TRACKED = Role("tracked")
STATISTIC = Role("statistic")

Roles = dict[str, Any]
"""Nested dict of `Role` with the structure of the parameters."""


def find_role(roles: Roles, path: tuple[str, ...]) -> Role | None:
    """The role of the parameter whose path `path` ends with, None for an array that belongs to no parameter.

    Optimiser moments lie under the path of their parameter: ("inner_states", ..., "mu", "model", "norm", "scale").
    """
    for start in range(len(path)):
        node: Any = roles
        for name in path[start:]:
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, Role):
            return node
    return None


def without(kind: Kind, tree: dict[str, Any], roles: Roles) -> dict[str, Any]:
    """`tree`, a dict with the structure of `roles`, without the leaves of a kind."""
    rest = {}
    for name, part in tree.items():
        role = roles.get(name)
        if isinstance(part, dict):
            rest[name] = without(kind, part, role if isinstance(role, dict) else {})
        elif not (isinstance(role, Role) and role.kind == kind):
            rest[name] = part
    return rest


def stack(roles: Roles) -> Roles:
    """The roles of identical blocks whose parameters are stacked along a first axis."""
    return _replace(roles, stacked=True)


def gather(roles: Roles) -> Roles:
    """The roles of parameters of which each device of the mesh axis `fsdp` stores all."""
    return _replace(roles, gathered=True)


def _replace(roles: Roles, **changes: bool) -> Roles:
    return {
        name: _replace(part, **changes) if isinstance(part, dict) else dataclasses.replace(part, **changes)
        for name, part in roles.items()
    }
