"""Flax modules as constructors of pure functions.

Modules own shapes and parameters; one network is one tree of modules. Code outside `models/` sees a plain nested dict
of arrays with string keys: `init` makes the dict, `bind` turns it back into a callable module inside a traced function.
Identical blocks are one module whose parameters have a leading axis (`stack`); `scan_blocks` applies it.
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args

import jax
from flax import nnx

from melody_jax.errors import UserError
from melody_jax.roles import Role, Roles
from melody_jax.sharding import GATHERED, constrain_batch

Params = dict[str, Any]

Remat = Literal["none", "dots", "blocks"]
"""What the backward pass recomputes instead of storing: "none"; "dots", everything in a block except its products with
weights, which are most of the work, and weights that were gathered for them; "blocks", everything except a block's
input, for a third more work."""

M = TypeVar("M", bound=nnx.Module)
T = TypeVar("T")


def _string_keys(tree: Any) -> Any:
    return {str(k): _string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _integer_keys(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {int(k) if k.isdigit() else k: _integer_keys(v) for k, v in tree.items()}


class _Stream(nnx.RngStream):
    """Keys numbered by a Python integer.

    Flax counts them in an array. Each change of that array while a network is traced costs time in proportion to all
    that was traced before, which made up most of the time to trace a large network.
    """

    def __init__(self, key: jax.Array) -> None:
        super().__init__(key, tag="default")
        self.drawn = 0

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.drawn)
        self.drawn += 1
        return key


class _Rngs(nnx.Rngs):
    def __init__(self, key: jax.Array) -> None:
        super().__init__()
        self.default = _Stream(key)


def make_rngs(key: jax.Array | int) -> nnx.Rngs:
    """`nnx.Rngs(key)`, with the same keys, made faster while tracing."""
    return _Rngs(jax.random.key(key) if isinstance(key, int) else key)


def init(cls: Callable[..., nnx.Module], *args: Any, key: jax.Array) -> Params:
    """Parameters of `cls(*args, rngs=...)` as a nested dict of float32 arrays. `args` must be hashable configs."""
    module = cls(*args, rngs=make_rngs(key))
    return _string_keys(nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def init_stack(cls: Callable[..., nnx.Module], *args: Any, key: jax.Array, depth: int) -> Params:
    """Parameters of `depth` identical modules, each leaf stacked along a new first axis."""
    return jax.vmap(lambda k: init(cls, *args, key=k))(jax.random.split(key, depth))


def split_key(rngs: nnx.Rngs, parts: int) -> jax.Array:
    """Keys (parts,) split from the seed of `rngs`, one for each part of a network.

    The values of one part then depend on its own shape only, not on what the constructor draws before it.
    """
    return jax.random.split(rngs.default.key[...], parts)


def stack(cls: Callable[..., M], *args: Any, depth: int, key: jax.Array) -> M:
    """One module that holds the parameters of `depth` modules `cls(*args)`, each leaf stacked along a new first axis.

    Only `scan_blocks` and `unstack` can apply it.
    """

    def block(key: jax.Array) -> M:
        module = cls(*args, rngs=make_rngs(key))
        for _, variable in nnx.iter_graph(module):
            if isinstance(variable, nnx.Param) and variable.has_metadata("role"):
                variable.set_metadata(role=dataclasses.replace(variable.get_metadata("role"), stacked=True))
        return module

    return jax.vmap(block)(jax.random.split(key, depth))


@lru_cache(maxsize=256)
def _abstract(cls: Callable[..., nnx.Module], args: tuple[Any, ...]) -> tuple[Any, Any]:
    with jax.enable_x64(False):  # parameters are float32
        return nnx.split(nnx.eval_shape(lambda: cls(*args, rngs=make_rngs(0))))


def bind(cls: Callable[..., M], *args: Any, params: Params) -> M:
    """The module `cls(*args)` that holds `params`. Call it only inside a traced function.

    A parameter that `params` lacks stays abstract: the module works as long as nothing reads it.
    """
    graph, state = _abstract(cls, args)
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy: the cached one must stay abstract
    nnx.replace_by_pure_dict(state, _integer_keys(params))
    return nnx.merge(graph, state)


def roles(cls: Callable[..., nnx.Module], *args: Any) -> Roles:
    """The role of every parameter of `cls(*args)`, with the structure of what `init` returns.

    Raises:
        ValueError: a parameter was created without a role.
    """
    collected: Roles = {}
    for path, variable in nnx.to_flat_state(nnx.filter_state(_abstract(cls, args)[1], nnx.Param)):
        role = variable.get_metadata("role", None)
        if not isinstance(role, Role):
            name = "/".join(map(str, path))
            raise ValueError(f"parameter {name} of {cls.__name__} has no role; models/layers.py gives one")
        *parents, leaf = map(str, path)
        node = collected
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = role
    return collected


def shapes(cls: Callable[..., nnx.Module], *args: Any) -> Params:
    """The shape and type of every parameter of `cls(*args)`, with the structure of what `init` returns."""
    return _string_keys(nnx.to_pure_dict(nnx.filter_state(_abstract(cls, args)[1], nnx.Param)))


def unstack(stacked: T, depth: int) -> list[T]:
    """The `depth` trees (modules, parameters, caches) that `stacked` holds along the first axis of each leaf."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(depth)]


def scan_blocks(
    blocks: Callable[..., jax.Array],
    x: jax.Array,
    inputs: tuple[Any, ...] = (),
    keys: jax.Array | None = None,
    remat: Remat = "none",
    depth: int | None = None,
) -> jax.Array:
    """Applies a module from `stack`, x = block(x, *inputs) for each block, with `lax.scan`; the first `depth` if given.

    `keys` (depth,) gives each block its own PRNG key as the keyword argument `key`.
    """

    def body(
        carry: jax.Array, layer: tuple[Callable[..., jax.Array], jax.Array | None]
    ) -> tuple[jax.Array, None]:
        block, key = layer
        keyword = {} if key is None else {"key": key}
        result = block(constrain_batch(carry), *inputs, **keyword)
        return constrain_batch(result.astype(carry.dtype)), None

    blocks = jax.tree.map(lambda leaf: leaf[:depth], blocks)
    return jax.lax.scan(rematerialised(body, remat), x, (blocks, keys))[0]


def rematerialised(
    block: Callable[..., Any], remat: str, static_argnums: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """The block under one of the policies in `Remat`; values and gradients are the same under each.

    Raises:
        UserError: `remat` names no policy.
    """
    if remat not in get_args(Remat):
        raise UserError(f"remat {remat!r}: it must be one of {', '.join(get_args(Remat))}")
    if remat == "none":
        return block
    policies = jax.checkpoint_policies
    dots = policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(GATHERED)
    )
    return jax.checkpoint(block, policy=dots if remat == "dots" else None, static_argnums=static_argnums)


def count(params: Any) -> int:
    """Numbers in the tree; works on the result of `jax.eval_shape` too."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
