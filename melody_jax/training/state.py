"""The state of training: parameters, optimiser state and the weight average."""

from collections.abc import Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from melody_jax.config import OptimizerConfig, TrainConfig
from melody_jax.models.functional import Params
from melody_jax.roles import Kind, Role, Roles, find_role, gather
from melody_jax.sharding import path_name, path_names
from melody_jax.training.lora import adapted

FROZEN = ("base", "frozen")
"""Parts of `params` that have no gradients: the base network of adapters, and released networks that a stage reads."""


class TrainState(NamedTuple):
    """The state of the computation that a checkpoint stores. PRNG keys are derived from `step` and not stored."""

    step: jax.Array
    """() int32, completed optimiser steps."""
    params: Params
    """{"model": ..., and networks that exist in training only}; those in `FROZEN` do not learn (training/stage.py)."""
    opt_state: optax.OptState
    ema: Params
    """Running average of `params["model"]`, which is evaluated and released."""
    halted: jax.Array
    """() bool: a step was not finite. Later steps change nothing until the loop has handled it (training/nonfinite.py):
    the state is that before the bad step. Not stored in checkpoints."""


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


NOT_DECAYED: tuple[Kind, ...] = ("norm", "bias", "vector", "tracked", "statistic")
"""Roles without weight decay."""
ORTHOGONALISED: tuple[Kind, ...] = ("column", "row", "conv")
"""Roles whose update Muon orthogonalises. AdamW updates the others, including classifiers and embeddings, for which
Muon works badly."""


def is_decayed(role: Role | None) -> bool:
    """Whether weight decay applies to a parameter of this role."""
    return role is not None and role.kind not in NOT_DECAYED


def muon_axes(role: Role | None, ndim: int) -> contrib.MuonDimensionNumbers | None:
    """Input axes and output axis of the matrix that Muon orthogonalises; None: AdamW updates the parameter.

    The output axis is the last one. The other axes are inputs, except the first axis of stacked blocks.
    """
    if role is None or role.kind not in ORTHOGONALISED:
        return None
    return contrib.MuonDimensionNumbers(tuple(range(int(role.stacked), ndim - 1)), ndim - 1)


def _scale_rates(rate_scales: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    def scale(path: str) -> float:
        return next((factor for prefix, factor in rate_scales if path.startswith(prefix)), 1.0)

    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(lambda p, u: u * scale(path_name(p)), updates)
    )


def make_optimizer(config: OptimizerConfig, steps: int, roles: Roles) -> optax.GradientTransformation:
    """Clipped AdamW or Muon over `params`; `params["discriminator"]` has AdamW with separate moments, gradient norm
    and learning rate. Moving averages (the role "tracked") take their "gradients" as they are.

    `roles` are those of `params` (`Stage.roles`).
    """

    def decayed(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: is_decayed(find_role(roles, path_names(path))), params
        )

    def axes(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: muon_axes(find_role(roles, path_names(path)), leaf.ndim), params
        )

    def adamw(peak: float, beta1: float) -> optax.GradientTransformation:
        return optax.adamw(
            learning_rate(config, peak, steps),
            b1=beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=decayed,
        )

    def muon() -> optax.GradientTransformation:
        return contrib.muon(
            learning_rate(config, config.learning_rate, steps),
            weight_decay=config.weight_decay,
            weight_decay_mask=decayed,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            muon_weight_dimension_numbers=axes,
            consistent_rms=0.2,
        )

    def clipped(inner: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), inner)

    groups: dict[Hashable, optax.GradientTransformation] = {
        "model": clipped(muon() if config.muon else adamw(config.learning_rate, config.beta1)),
        "discriminator": clipped(adamw(config.discriminator_learning_rate, config.discriminator_beta1)),
    }
    if _has_tracked(roles):
        groups["tracked"] = optax.sgd(1.0)
    split = optax.partition(groups, partial(_groups, roles))
    return optax.chain(split, _scale_rates(config.rate_scales)) if config.rate_scales else split


def _has_tracked(roles: Roles) -> bool:
    return any(role.kind == "tracked" for role in jax.tree.leaves(roles))


def _groups(roles: Roles, params: Params) -> Params:
    """The group of the optimiser that each parameter belongs to; one name for a network without moving averages."""

    def group(path: jax.tree_util.KeyPath, _: Any) -> str:
        names = path_names(path)
        role = find_role(roles, names)
        if role is not None and role.kind == "tracked":
            return "tracked"
        return "discriminator" if names[0] == "discriminator" else "model"

    labels = jax.tree_util.tree_map_with_path(group, params)
    names = {name: set(jax.tree.leaves(part)) for name, part in labels.items()}
    return {name: names[name].pop() if len(names[name]) == 1 else part for name, part in labels.items()}


def trained(params: Params) -> Params:
    """The part of `params` that the optimiser updates."""
    return {name: part for name, part in params.items() if name not in FROZEN}


def state_roles(config: TrainConfig) -> Roles:
    """The roles of the arrays of a run's `TrainState`: parameters, optimiser moments and average.

    With `zero_stage` 1 only those of the moments and the average are split over the mesh axis `fsdp`.
    """
    roles = adapted(config.stage, config.lora).roles
    parameters = gather(roles) if config.zero_stage == 1 else roles
    return roles | {"ema": roles["model"], "params": parameters}


def create_state(config: TrainConfig, key: jax.Array) -> TrainState:
    """A fresh state; the average starts at the initial parameters."""
    stage = adapted(config.stage, config.lora)
    params = jax.tree.map(_strongly_typed, stage.init(key))
    optimizer = make_optimizer(config.optimizer, config.steps, stage.roles)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(trained(params)),
        ema=jax.tree.map(jnp.copy, params["model"]),
        halted=jnp.zeros((), bool),
    )


def _strongly_typed(leaf: jax.Array) -> jax.Array:
    """A weakly typed leaf (from `jnp.full` and the like) would change its type in the first step and compile twice."""
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def early_decay(decay: float, step: jax.Array) -> jax.Array:
    """The decay of a moving average at a step, small in the first ones: min(decay, (1 + step) / (10 + step))."""
    t = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + t) / (10.0 + t))


def ema_update(ema: Params, model: Params, step: jax.Array, decay: float) -> Params:
    """Moves the average towards `model` with `early_decay`."""
    d = early_decay(decay, step)
    return jax.tree.map(lambda average, new: average + (1.0 - d) * (new - average), ema, model)
