"""Low-rank adapters (LoRA, arXiv 2106.09685) for any stage: few numbers learn, the network stays as it was.

A chosen kernel W (in, out) is used as W + alpha / rank * A B, with A (in, rank) random and B (rank, out) zero at first:
training starts at W exactly. Stacked blocks have an A and a B each, along the same first axis. The sum is formed before
the network is called, so networks, losses and samplers know nothing of adapters.

`params["model"]` are the adapters, {path of the kernel: {"lora_a", "lora_b"}} as a nested dict, and `params["base"]` is
the network. `merge` makes one network of them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from melody_jax.config import LoRAConfig
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.release import flatten, unflatten
from melody_jax.sharding import is_stacked
from melody_jax.training.stage import Batch, Metrics, Stage


def adapted(stage: Stage, config: LoRAConfig) -> Stage:
    """`stage` with adapters that learn in place of its network; `stage` itself at rank 0."""
    return Adapted(stage, config) if config.rank else stage


def init_adapters(model: Params, config: LoRAConfig, key: jax.Array) -> Params:
    """Fresh adapters for the kernels of `model` that the config names, float32.

    Raises:
        UserError: it names none, or one that is not a matrix or is narrower than the rank.
    """
    chosen = {path: leaf for path, leaf in flatten(model).items() if re.search(config.kernels, path)}
    if not chosen:
        raise UserError(f"lora.kernels {config.kernels!r} is found in no path of this network")
    adapters = {}
    for path, leaf in sorted(chosen.items()):
        if leaf.ndim - is_stacked(path) != 2:
            raise UserError(f"lora.kernels {config.kernels!r} is found in {path}, which is not a matrix")
        *depth, inputs, outputs = leaf.shape
        if config.rank > min(inputs, outputs):
            raise UserError(
                f"lora.rank is {config.rank}, but {path} is {inputs} x {outputs}; set at most the smaller"
            )
        key, own = jax.random.split(key)
        adapters[f"{path}/lora_a"] = jax.random.normal(own, (*depth, inputs, config.rank)) * inputs**-0.5
        adapters[f"{path}/lora_b"] = jnp.zeros((*depth, config.rank, outputs))
    return unflatten(adapters)


def merge(base: Params, adapters: Params, config: LoRAConfig) -> Params:
    """The network `base` with every adapter added to its kernel."""
    model, pairs = flatten(base), flatten(adapters)
    for path in {path.rpartition("/")[0] for path in pairs}:
        a, b = pairs[f"{path}/lora_a"], pairs[f"{path}/lora_b"]
        # the default precision of accelerators would round away what small adapters say
        added = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        model[path] = model[path] + config.alpha / config.rank * added
    return unflatten(model)


@dataclass(frozen=True)
class Adapted:
    """A stage whose network is `params["base"]` and whose adapters are `params["model"]`."""

    stage: Stage
    config: LoRAConfig

    @property
    def name(self) -> str:
        """The network's name."""
        return self.stage.name

    def init(self, key: jax.Array) -> Params:
        """The stage's parameters as the base, and fresh adapters."""
        params = self.stage.init(key)
        adapters = init_adapters(params["model"], self.config, jax.random.fold_in(key, 1))
        return params | {"base": params["model"], "model": adapters}

    def gradients(
        self, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Params, Metrics]:
        """The stage's gradients, its network's carried on to the adapters."""
        model, carry = jax.vjp(lambda adapters: merge(params["base"], adapters, self.config), params["model"])
        grads, metrics = self.stage.gradients(_merged(params, model), batch, key, step)
        return grads | {"model": carry(grads["model"])[0]}, metrics

    def evaluate(self, params: Params, batch: Batch, key: jax.Array) -> Metrics:
        """The stage's metrics of the merged network."""
        model = merge(params["base"], params["model"], self.config)
        return self.stage.evaluate(_merged(params, model), batch, key)

    def finish(self, model: Params, batches: Iterator[Batch], key: jax.Array) -> tuple[Params, Metrics]:
        """The stage's: `model` is the merged network, for that is what is released."""
        return self.stage.finish(model, batches, key)


def _merged(params: Params, model: Params) -> Params:
    return {name: part for name, part in params.items() if name != "base"} | {"model": model}
