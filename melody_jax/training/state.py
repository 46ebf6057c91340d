"""What training changes: parameters, optimiser state and the weight average."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from melody_jax.config import OptimizerConfig, TrainConfig
from melody_jax.models.functional import Params
from melody_jax.sharding import is_stacked, path_name
from melody_jax.training.lora import adapted


class TrainState(NamedTuple):
    """All that a checkpoint holds of the computation; randomness is derived from `step`, so no key is in it."""

    step: jax.Array
    """() int32, optimiser steps done."""
    params: Params
    """{"model": ..., and what exists in training only}; `params["base"]` is not trained (training/stage.py)."""
    opt_state: optax.OptState
    ema: Params
    """Running average of `params["model"]`: what is evaluated and released."""
    halted: jax.Array
    """() bool: a step had numbers that are not finite. From then on steps change nothing, until the loop has seen it
    (`training/sentinel.py`): the state stays the one that the bad step began with. Not in checkpoints."""


def learning_rate(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then a cosine to `final_fraction * peak` at `steps`."""
    warmup = min(config.warmup_steps, steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else peak,
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=steps,
        end_value=peak * config.final_fraction,
    )


def _decayed(params: Params) -> Params:
    """True for matrices. In stacked blocks vectors have two axes, so gains and biases are told by name as well."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and not path_name(path).endswith(("scale", "bias")), params
    )


def _kernel_axes(params: Any) -> Any:
    """Which axes of each layer's kernel are the matrix that Muon orthogonalises; None: not Muon's.

    The last axis is the output and the others the input, but for the first where blocks are stacked. Heads that exist
    in training only are classifiers, which Muon serves badly.
    """

    def axes(path: jax.tree_util.KeyPath, leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
        name = path_name(path)
        if not (name.startswith("model/") and name.endswith("/kernel")):
            return None
        first = 1 if is_stacked(name) else 0
        return contrib.MuonDimensionNumbers(tuple(range(first, leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def _scale_rates(rate_scales: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    def scale(path: str) -> float:
        return next((factor for prefix, factor in rate_scales if path.startswith(prefix)), 1.0)

    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(lambda p, u: u * scale(path_name(p)), updates)
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipped AdamW or Muon over `params`; `params["discriminator"]` has AdamW with its own moments, norm and rate."""

    def adamw(peak: float, beta1: float) -> optax.GradientTransformation:
        return optax.adamw(
            learning_rate(config, peak, steps),
            b1=beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=_decayed,
        )

    def muon() -> optax.GradientTransformation:
        return contrib.muon(
            learning_rate(config, config.learning_rate, steps),
            weight_decay=config.weight_decay,
            weight_decay_mask=_decayed,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            muon_weight_dimension_numbers=_kernel_axes,
            consistent_rms=0.2,
        )

    def clipped(inner: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), inner)

    split = optax.partition(
        {
            "model": clipped(muon() if config.muon else adamw(config.learning_rate, config.beta1)),
            "discriminator": clipped(adamw(config.discriminator_learning_rate, config.discriminator_beta1)),
        },
        lambda params: {name: "discriminator" if name == "discriminator" else "model" for name in params},
    )
    return optax.chain(split, _scale_rates(config.rate_scales)) if config.rate_scales else split


def trained(params: Params) -> Params:
    """What the optimiser sees of `params`: all but what adapters are added to."""
    return {name: part for name, part in params.items() if name != "base"}


def create_state(config: TrainConfig, key: jax.Array) -> TrainState:
    """A fresh state; the average starts at the initial parameters."""
    params = jax.tree.map(_strongly_typed, adapted(config.stage, config.lora).init(key))
    optimizer = make_optimizer(config.optimizer, config.steps)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(trained(params)),
        ema=jax.tree.map(jnp.copy, params["model"]),
        halted=jnp.zeros((), bool),
    )


def _strongly_typed(leaf: jax.Array) -> jax.Array:
    """What `jnp.full` and the like leave weakly typed would change its type in the first step: two compilations."""
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def ema_update(ema: Params, model: Params, step: jax.Array, decay: float) -> Params:
    """Moves the average towards `model` with decay min(decay, (1 + step) / (10 + step)): short runs warm up too."""
    t = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1.0 + t) / (10.0 + t))
    return jax.tree.map(lambda average, new: average + (1.0 - d) * (new - average), ema, model)
