"""The training loop, blind to the stage. Its order is fixed: look, evaluate, save, next batch, step.

Looking comes first: metrics stay on the device until then, and what is evaluated and saved is known to be finite.
Saving before `next` keeps the batch: a run resumed from step n sees the same batches as one never interrupted, and
with `key = fold_in(seed, step)` it ends with the same bits.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from melody_jax.config import TrainConfig
from melody_jax.data.pipeline import BatchIterator
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.sharding import make_mesh, mesh_context, place_batch, sharded_init, state_sharding
from melody_jax.training import checkpoint
from melody_jax.training.digests import digests
from melody_jax.training.init_from import start_from
from melody_jax.training.lora import adapted
from melody_jax.training.metric_log import MetricLog, Profile, mean
from melody_jax.training.preview import make_preview
from melody_jax.training.sentinel import Sentinel, gradient_norms, is_finite
from melody_jax.training.stage import Batch, Metrics, Stage
from melody_jax.training.state import (
    TrainState,
    create_state,
    ema_update,
    learning_rate,
    make_optimizer,
    trained,
)


@checkpoint.explains_full_disk
def train(
    config: TrainConfig,
    batches: BatchIterator,
    held_out: Sequence[Batch],
    hashes: dict[str, str] | None = None,
    quiet: bool = False,
) -> TrainState:
    """Trains to `config.steps`, resuming from `config.workdir` if it holds a checkpoint, and returns the last state.

    `held_out` are the evaluation batches; `hashes` say which networks the data was made with. SIGTERM, and
    `stop_minutes`, save and return early.

    Raises:
        Diverged: the loss or a gradient is not finite (see `TrainConfig.on_nonfinite`).
        UserError: the run folder holds another run, or the disk is full.
    """
    workdir, mesh = Path(config.workdir), make_mesh(config.mesh)
    checkpoints = checkpoint.Checkpoints(workdir, config.keep_last, config.keep_every)
    state = _begin(config, checkpoints, batches, hashes or {}, mesh)
    step, evaluate = make_step(config, state), make_evaluate(config, held_out, mesh)
    preview = make_preview(config, held_out, mesh)
    n = start = int(state.step)
    rate = learning_rate(config.optimizer, config.optimizer.learning_rate, config.steps)
    log = MetricLog(workdir, start, config.steps, config.stage.name, rate, quiet)
    sentinel = Sentinel(config, checkpoints, batches, mesh)
    profile = Profile(workdir, config.watch.profile_first, config.watch.profile_steps)
    alarm = checkpoint.Alarm(config)
    program: Any = None
    try:
        while True:
            last, due = n == config.steps, _due_after(n, start)
            save, stop = alarm.due(n)
            untouched = n == 0 and config.init_from != ""  # how good the weights are that the run starts from
            evaluating = untouched or due(config.eval_every, last)
            previewing = preview and due(config.watch.preview_every, last)
            if last or save or evaluating or previewing or due(config.log_every):
                bad = log.flush()
                if bad is not None:
                    with log.spent("other"):
                        state = sentinel.act(bad, state)
                    n = int(state.step)
                    log.went_back(n)
                    continue
            with log.spent("other"):
                if evaluating:
                    log.write(n, {f"eval/{name}": value for name, value in evaluate(state).items()})
                if preview and previewing:
                    log.show(n, preview(state))
                if n > start and (last or save):
                    checkpoints.save(state, batches.get_state())
            if last or stop:
                break
            sentinel.passing(n)
            with log.spent("data"):
                batch = place_batch(next(batches), mesh)
            if program is None:
                with log.spent("other"), mesh_context(mesh):
                    traced = step.trace(state, batch)
                    log.measure_utilisation(traced.jaxpr, mesh.size, config.watch.peak_tflops)
                    program = traced.lower().compile()
            with profile.step(n):
                state, metrics = program(state, batch)
            n += 1
            log.add(n, metrics)
    finally:
        try:
            profile.close()
            log.close()
        finally:
            checkpoints.close()
            alarm.close()
    return state


def _due_after(n: int, start: int) -> Callable[..., bool]:
    """Whether what happens every so many steps, and perhaps at the end, happens now: never where a process begins."""
    return lambda steps, last=False: n > start and (last or (steps > 0 and n % steps == 0))


def make_step(
    config: TrainConfig, state: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The one compiled function of training; it donates the state.

    Numbers that are not finite halt the state: this step and those after it leave it as it was.
    """
    stage = adapted(config.stage, config.lora)
    optimizer = make_optimizer(config.optimizer, config.steps)
    seed_key = jax.random.key(config.seed)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(seed_key, state.step)
        grads, metrics = accumulated(stage, config.accumulate, state.params, batch, key, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained(state.params))
        params = state.params | optax.apply_updates(trained(state.params), updates)  # type: ignore[operator]
        ema = ema_update(state.ema, params["model"], state.step, config.ema_decay)  # type: ignore[index]
        metrics = (
            metrics | gradient_norms(grads) | (digests(stage, batch, key) if config.watch.digests else {})
        )
        halted = state.halted | ~is_finite(metrics)
        new = TrainState(state.step + 1, params, opt_state, ema, halted)  # type: ignore[arg-type]
        kept = jax.tree.map(lambda old, new: jnp.where(halted, old, new), state, new)
        return kept._replace(halted=halted), metrics

    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(placed, None))


def accumulated(
    stage: Stage, parts: int, params: Params, batch: Batch, key: jax.Array, step: jax.Array
) -> tuple[Params, Metrics]:
    """`stage.gradients` as the mean over parts of the batch, worked off one after the other.

    Parts have equally many items, but weigh by the metric "weight" if the stage has one: what its loss is a mean over.
    """
    if parts == 1:
        grads, metrics = stage.gradients(params, batch, key, step)
        return grads, {name: value for name, value in metrics.items() if name != "weight"}
    # strided parts: each device's rows stay where they are
    split = jax.tree.map(lambda rows: rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1), batch)

    def weighed(rows: Batch, number: jax.Array) -> tuple[Params, Metrics, jax.Array]:
        grads, metrics = stage.gradients(params, rows, jax.random.fold_in(key, number), step)
        weight = metrics.pop("weight", jnp.float32(1))
        return *jax.tree.map(lambda leaf: leaf * weight, (grads, metrics)), weight

    def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, weighed(*part)), None

    shapes = jax.eval_shape(weighed, jax.tree.map(lambda rows: rows[0], split), step)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    *sums, weight = jax.lax.scan(add, zeros, (split, jnp.arange(parts)))[0]
    grads, metrics = jax.tree.map(lambda leaf: leaf / jnp.maximum(weight, 1), sums)
    return grads, metrics


def make_evaluate(
    config: TrainConfig, held_out: Sequence[Batch], mesh: Mesh
) -> Callable[[TrainState], dict[str, float]]:
    """Mean metrics of the averaged weights over the held-out batches, with noise fixed by the batch's number."""
    stage = adapted(config.stage, config.lora)
    seed_key = jax.random.key(config.seed + 1)
    compiled = jax.jit(
        lambda params, batch, i: stage.evaluate(params, batch, jax.random.fold_in(seed_key, i))
    )

    def evaluate(state: TrainState) -> dict[str, float]:
        params = state.params | {"model": state.ema}
        with mesh_context(mesh):
            rows = [
                compiled(params, place_batch(batch, mesh), jnp.int32(i)) for i, batch in enumerate(held_out)
            ]
        return mean(jax.device_get(rows))

    return evaluate


def _begin(
    config: TrainConfig,
    checkpoints: checkpoint.Checkpoints,
    batches: BatchIterator,
    hashes: dict[str, str],
    mesh: Mesh,
) -> TrainState:
    workdir = Path(config.workdir)
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31)  # no step comes to this number
    if checkpoints.latest is not None:
        checkpoint.check_resume(workdir, config, hashes)
        shapes = jax.eval_shape(lambda k: create_state(config, k), key)
        state, position = checkpoints.restore(checkpoint.abstract_like(shapes, state_sharding(shapes, mesh)))
        batches.set_state(position)
        if int(state.step) > config.steps:
            raise UserError(f"{workdir} is at step {int(state.step)}, past --steps {config.steps}")
    else:
        state = sharded_init(lambda k: create_state(config, k), key, mesh)
        if config.init_from:
            state = start_from(config, state, hashes, mesh)
    checkpoint.write_run(workdir, config, hashes)
    return state
