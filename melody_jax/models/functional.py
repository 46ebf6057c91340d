"""Flax modules as constructors of pure functions.

Modules own shapes and parameters. Everything outside `models/` sees a plain nested dict of arrays with string keys:
`init` makes one, `bind` turns one back into a callable module inside a traced function, `scan_blocks` runs a stack
of identical blocks whose parameters are stacked along a leading axis.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, get_args

import jax
from flax import nnx

from melody_jax.errors import UserError
from melody_jax.roles import Role, Roles
from melody_jax.sharding import constrain_batch

Params = dict[str, Any]

Remat = Literal["none", "dots", "blocks"]
"""What the backward pass computes again instead of keeping it: nothing; all of a block but its products with weights,
which are most of the work; all of a block but its input, for a third more work."""


def _string_keys(tree: Any) -> Any:
    return {str(k): _string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _integer_keys(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {int(k) if k.isdigit() else k: _integer_keys(v) for k, v in tree.items()}


def init(cls: Callable[..., nnx.Module], *args: Any, key: jax.Array) -> Params:
    """Parameters of `cls(*args, rngs=...)` as a nested dict of float32 arrays. `args` must be hashable configs."""
    module = cls(*args, rngs=nnx.Rngs(key))
    return _string_keys(nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def init_stack(cls: Callable[..., nnx.Module], *args: Any, key: jax.Array, depth: int) -> Params:
    """Parameters of `depth` identical modules, each leaf stacked along a new first axis."""
    return jax.vmap(lambda k: init(cls, *args, key=k))(jax.random.split(key, depth))


@lru_cache(maxsize=256)
def _abstract(cls: Callable[..., nnx.Module], args: tuple[Any, ...]) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: cls(*args, rngs=nnx.Rngs(0))))


def bind(cls: Callable[..., nnx.Module], *args: Any, params: Params) -> Any:
    """The module `cls(*args)` holding `params`. Call it inside the traced function only."""
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
        role = variable.get_metadata().get("role")
        if not isinstance(role, Role):
            raise ValueError(f"parameter {'/'.join(map(str, path))} of {cls.__name__} has no role")
        *parents, leaf = map(str, path)
        node = collected
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = role
    return collected


def unstack(stacked: Any, depth: int) -> list[Any]:
    """The `depth` trees that `stacked` holds along the first axis of each leaf: parameters of `init_stack`, caches."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(depth)]


def scan_blocks(
    cls: Callable[..., nnx.Module],
    *args: Any,
    params: Params,
    x: jax.Array,
    inputs: tuple[Any, ...] = (),
    keys: jax.Array | None = None,
    remat: Remat = "none",
    unroll: int | bool = 1,
) -> jax.Array:
    """Applies the stack: x = block(x, *inputs) for each of the stacked parameter sets, with `lax.scan`.

    `keys` (depth,) gives each block its own PRNG key as the keyword argument `key`.
    """

    def body(carry: jax.Array, block: tuple[Params, jax.Array | None]) -> tuple[jax.Array, None]:
        block_params, key = block
        keyword = {} if key is None else {"key": key}
        result = bind(cls, *args, params=block_params)(constrain_batch(carry), *inputs, **keyword)
        return constrain_batch(result.astype(carry.dtype)), None

    return jax.lax.scan(rematerialised(body, remat), x, (params, keys), unroll=unroll)[0]


def rematerialised(
    block: Callable[..., Any], remat: Remat, static_argnums: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """The block under a policy of `Remat`; its values and gradients are the same under each.

    Raises:
        UserError: there is no such policy.
    """
    if remat not in get_args(Remat):
        raise UserError(f"remat {remat!r}: it must be one of {', '.join(get_args(Remat))}")
    if remat == "none":
        return block
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(block, policy=policy, static_argnums=static_argnums)


def count(params: Params) -> int:
    """How many numbers the tree holds; works on `jax.eval_shape` results too."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
