"""Low-rank adapters (LoRA, arXiv 2106.09685) for any stage: small matrices train, the network stays fixed.

A selected kernel W (in, out) is used as W + alpha / rank * A B. A (in, rank) starts random and B (rank, out) starts at
zero, so training starts at W exactly. Stacked blocks have one A and one B per block, along the same first axis. The sum
is formed before the network is called, so networks, losses and samplers do not depend on adapters.

`params["model"]` are the adapters, {path of the kernel: {"lora_a", "lora_b"}} as a nested dict, and `params["base"]` is
the network. `merge` adds the adapters to it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from melody_jax.config import LoRAConfig
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.release import flatten, unflatten
from melody_jax.roles import Role, Roles
from melody_jax.training.stage import Batch, Metrics, RandomDraws, Stage


def adapted(stage: Stage, config: LoRAConfig) -> Stage:
    """`stage` with adapters that train in place of its network; `stage` itself at rank 0."""
    return Adapted(stage, config) if config.rank else stage


def targets(roles: Roles, config: LoRAConfig) -> dict[str, Role]:
    """Path and role of every parameter of a network that gets an adapter, sorted by path.

    Raises:
        UserError: `config` selects none.
    """
    paths = sorted(flatten(roles).items())
    if config.kernels:
        selected = {path: role for path, role in paths if re.search(config.kernels, path)}
        problem = f"lora.kernels {config.kernels!r} matches no path of this network"
    else:
        selected = {path: role for path, role in paths if role.lora}
        problem = "this network has no attention or feed-forward layers; select matrices with lora.kernels"
    if not selected:
        raise UserError(problem)
    return selected


def adapter_roles(roles: Roles, config: LoRAConfig) -> Roles:
    """The roles of the adapters of a network with these roles."""
    adapters = {}
    for path, role in targets(roles, config).items():
        row = role.kind == "row"
        adapters[f"{path}/lora_a"] = Role("row_lora_a" if row else "column_lora_a", stacked=role.stacked)
        adapters[f"{path}/lora_b"] = Role("row_lora_b" if row else "column_lora_b", stacked=role.stacked)
    return unflatten(adapters)


def init_adapters(model: Params, roles: Roles, config: LoRAConfig, key: jax.Array) -> Params:
    """Fresh adapters for the parameters of `model` that the config selects by `roles`, float32.

    Raises:
        UserError: it selects none, or one that is not a matrix or is narrower than the rank.
    """
    arrays = flatten(model)
    adapters = {}
    for path, role in targets(roles, config).items():
        leaf = arrays[path]
        if leaf.ndim - role.stacked != 2:
            raise UserError(f"lora.kernels {config.kernels!r} matches {path}, which is not a matrix")
        *depth, inputs, outputs = leaf.shape
        if config.rank > min(inputs, outputs):
            raise UserError(
                f"lora.rank is {config.rank}, but {path} is {inputs} x {outputs}; set at most the smaller"
            )
        key, adapter_key = jax.random.split(key)
        scale = inputs**-0.5
        adapters[f"{path}/lora_a"] = jax.random.normal(adapter_key, (*depth, inputs, config.rank)) * scale
        adapters[f"{path}/lora_b"] = jnp.zeros((*depth, config.rank, outputs))
    return unflatten(adapters)


def merge(base: Params, adapters: Params, config: LoRAConfig) -> Params:
    """The network `base` with every adapter added to its kernel."""
    model = flatten(base)
    pairs = flatten(adapters)
    for path in {path.rpartition("/")[0] for path in pairs}:
        # the default precision of accelerators would round small adapters away
        update = jnp.matmul(
            pairs[f"{path}/lora_a"], pairs[f"{path}/lora_b"], precision=jax.lax.Precision.HIGHEST
        )
        model[path] = model[path] + config.alpha / config.rank * update
    return unflatten(model)


@dataclass(frozen=True)
class Adapted(Stage):
    """A stage whose network is `params["base"]` and whose adapters are `params["model"]`."""

    stage: Stage
    config: LoRAConfig

    @property
    def name(self) -> str:
        """The network's name."""
        return self.stage.name

    @property
    def batch(self) -> str:
        """The stage's kind of batch."""
        return self.stage.batch

    @property
    def model(self) -> Any:
        """The config of the stage's network."""
        return self.stage.model

    @property
    def roles(self) -> Roles:
        """The stage's roles for the base, and those of the adapters."""
        roles = self.stage.roles
        return roles | {"base": roles["model"], "model": adapter_roles(roles["model"], self.config)}

    def init(self, key: jax.Array) -> Params:
        """The stage's parameters as the base, and fresh adapters."""
        params = self.stage.init(key)
        adapters = init_adapters(
            params["model"], self.stage.roles["model"], self.config, jax.random.fold_in(key, 1)
        )
        return params | {"base": params["model"], "model": adapters}

    def gradients(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Params, Metrics]:
        """The stage's gradients; those of the network are propagated to the adapters."""
        model, pull_back = jax.vjp(
            lambda adapters: merge(params["base"], adapters, self.config), params["model"]
        )
        grads, metrics = self.stage.gradients(_merged(params, model), batch, key, step)
        return grads | {"model": pull_back(grads["model"])[0]}, metrics

    def draw(self, batch: Batch, key: jax.Array) -> RandomDraws | None:
        """The stage's draws."""
        return self.stage.draw(batch, key)

    def evaluate(self, params: Params, batch: Batch, key: jax.Array) -> Metrics:
        """The stage's metrics of the merged network."""
        model = merge(params["base"], params["model"], self.config)
        return self.stage.evaluate(_merged(params, model), batch, key)

    def finish(self, model: Params, batches: Iterator[Batch], key: jax.Array) -> tuple[Params, Metrics]:
        """The stage's `finish`; `model` is the merged network, which is the one that is released."""
        return self.stage.finish(model, batches, key)


def _merged(params: Params, model: Params) -> Params:
    return {name: part for name, part in params.items() if name != "base"} | {"model": model}
