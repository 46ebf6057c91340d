"""The training loop, the same for every stage. Each iteration checks the metrics, evaluates, saves, takes a batch,
steps.

Metrics stay on the device until they are checked. The check comes first, so that only finite states are evaluated and
saved. Saving comes before `next`, so that no batch is lost: a run resumed from step n sees the same batches as an
uninterrupted run and, because `key = fold_in(seed, step)`, ends with the same bits.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from melody_jax.config import TrainConfig
from melody_jax.data.pipeline import BatchIterator
from melody_jax.errors import UserError
from melody_jax.mirror import Mirror
from melody_jax.models.functional import Params
from melody_jax.models.products import product_precision
from melody_jax.roles import without
from melody_jax.sharding import (
    check_batch,
    constrain_state,
    make_mesh,
    mesh_context,
    place_batch,
    sharded_init,
    state_sharding,
)
from melody_jax.training import checkpoint, run_folder
from melody_jax.training.digests import digests
from melody_jax.training.init_from import load_initial_weights
from melody_jax.training.lora import adapted
from melody_jax.training.metric_log import MetricLog, Profile, mean
from melody_jax.training.nonfinite import NonfiniteHandler, gradient_norms, is_finite
from melody_jax.training.preview import make_preview
from melody_jax.training.stage import Batch, Metrics, Stage
from melody_jax.training.state import (
    TrainState,
    create_state,
    ema_update,
    learning_rate,
    make_optimizer,
    state_roles,
    trained,
)
from melody_jax.training.stop_signal import StopSignal
from melody_jax.training.wandb_log import WandbLog


@checkpoint.report_disk_full
def train(
    config: TrainConfig,
    batches: BatchIterator,
    held_out: Sequence[Batch],
    hashes: dict[str, str] | None = None,
    quiet: bool = False,
) -> TrainState:
    """Trains to `config.steps`, resuming from `config.workdir` if it holds a checkpoint, and returns the last state.

    `held_out` are the evaluation batches; `hashes` identify the networks that the data was made with. On SIGTERM,
    on Ctrl-C, and after `stop_minutes`, it saves and returns early.

    Raises:
        Diverged: the loss or a gradient is not finite (see `TrainConfig.on_nonfinite`).
        UserError: the run folder holds another run, or the disk is full.
    """
    mesh = make_mesh(config.mesh)
    check_batch(config.data.batch_size, mesh, config.accumulate)
    rate = learning_rate(config.optimizer, config.optimizer.learning_rate, config.steps)
    with contextlib.ExitStack() as closing:
        folder = closing.enter_context(run_folder.open_workdir(config.workdir))
        workdir = folder.folder
        closing.enter_context(product_precision(config.matmul_precision))
        wandb = closing.enter_context(WandbLog(config, workdir))  # waits for the service after the last save
        stop_signal = StopSignal(config)
        closing.callback(stop_signal.close)
        checkpoints = checkpoint.Checkpoints(workdir, config.keep_last, config.keep_every, folder.remote)
        closing.callback(checkpoints.close)
        state = _begin(config, workdir, checkpoints, batches, hashes or {}, mesh)
        log = MetricLog(workdir, int(state.step), config.steps, config.stage.name, rate, quiet, wandb)
        closing.callback(log.close)
        if 0 < int(state.step) < config.steps:
            log.note(f"resuming after step {int(state.step)} of {config.steps}")
        return _train(config, folder, state, batches, held_out, mesh, checkpoints, stop_signal, log)


def _train(
    config: TrainConfig,
    folder: Mirror,
    state: TrainState,
    batches: BatchIterator,
    held_out: Sequence[Batch],
    mesh: Mesh,
    checkpoints: checkpoint.Checkpoints,
    stop_signal: StopSignal,
    log: MetricLog,
) -> TrainState:
    """The loop itself."""
    start = step = int(state.step)
    evaluate = make_evaluate(config, held_out, mesh)
    preview = make_preview(config, held_out, mesh)
    nonfinite = NonfiniteHandler(config, folder, checkpoints, batches, mesh)
    compiled_step: jax.stages.Compiled | None = None
    with Profile(folder.folder, config.watch.profile_first, config.watch.profile_steps) as profile:
        while True:
            last = step == config.steps
            due = _due_after(step, start)
            save, stop = stop_signal.check(step)
            is_initial = step == 0 and config.init_from != ""  # the loaded weights are evaluated too
            evaluates = is_initial or due(config.eval_every, last)
            previews = preview is not None and due(config.watch.preview_every, last)
            if last or save or evaluates or previews or due(config.log_every):
                bad = log.flush()
                if bad is not None:
                    with log.timer("other"):
                        state = nonfinite.handle(bad, state)
                    step = int(state.step)
                    if config.on_nonfinite == "rollback":
                        start = step  # evaluated and saved already
                    log.rewind(step)
                    continue
            with log.timer("other"):
                if evaluates:
                    log.write(step, {f"eval/{name}": value for name, value in evaluate(state).items()})
                if preview is not None and previews:
                    log.show(step, preview(state))
                if stop and not last:
                    action = "saving" if step > start else "nothing new to save"
                    log.note(
                        f"{stop_signal.reason}: {action} at step {step} of {config.steps}, then stopping"
                    )
                if step > start and (last or save):
                    folder.try_sweep()  # the metrics up to this step come before its checkpoint
                    checkpoints.save(state, batches.get_state())
            if last or stop:
                return state
            nonfinite.record_position(step)
            with log.timer("data"):
                batch = place_batch(next(batches), mesh)
            if compiled_step is None:
                with log.timer("other"), log.status("compiling"):
                    compiled_step = _compile(config, state, batch, mesh, log)
            with profile.step(step):
                state, metrics = compiled_step(state, batch)
            step += 1
            log.add(step, metrics)


def _compile(
    config: TrainConfig, state: TrainState, batch: Batch, mesh: Mesh, log: MetricLog
) -> jax.stages.Compiled:
    """The step, compiled for the shapes and placements of a state and a batch. Its cost is passed to the log."""
    with mesh_context(mesh):
        traced = make_step(config, state).trace(state, batch)
        log.measure_utilisation(traced.jaxpr, mesh.size, config.watch.peak_tflops)
        return traced.lower().compile()


def _due_after(step: int, start: int) -> Callable[..., bool]:
    """due(every, last): whether an action that repeats every `every` steps is due; never at the step where a process
    starts."""
    return lambda every, last=False: step > start and (last or (every > 0 and step % every == 0))


def make_step(config: TrainConfig, state: TrainState) -> jax.stages.Wrapped:
    """The jitted training step, (state, batch) -> (state, metrics); it donates the state.

    After a loss or gradient that is not finite, the state is halted: this step and later ones leave it unchanged.
    """
    stage = adapted(config.stage, config.lora)
    optimizer = make_optimizer(config.optimizer, config.steps, stage.roles)
    seed_key = jax.random.key(config.seed)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(seed_key, state.step)
        grads, metrics = accumulated(stage, config.accumulate, state.params, batch, key, state.step)
        grads = constrain_state(grads, stage.roles)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained(state.params))
        updated_params = cast(Params, optax.apply_updates(trained(state.params), updates))
        params = state.params | updated_params
        ema = ema_update(state.ema, params["model"], state.step, config.ema_decay)
        metrics = metrics | gradient_norms(without("tracked", grads, stage.roles))
        if config.watch.digests:
            metrics = metrics | digests(stage, batch, key)
        halted = state.halted | ~is_finite(metrics)
        updated = TrainState(state.step + 1, params, opt_state, ema, halted)
        selected = jax.tree.map(lambda old, new: jnp.where(halted, old, new), state, updated)
        return selected._replace(halted=halted), metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))


def accumulated(
    stage: Stage, parts: int, params: Params, batch: Batch, key: jax.Array, step: jax.Array
) -> tuple[Params, Metrics]:
    """`stage.gradients` as the mean over parts of the batch, computed one after the other.

    All parts have the same number of items. If the stage returns the metric "weight", the number of terms that its loss
    averages, parts are weighted by it.
    """
    if parts == 1:
        grads, metrics = stage.gradients(params, batch, key, step)
        return grads, {name: value for name, value in metrics.items() if name != "weight"}
    # strided parts: the rows of each device stay on it
    split = jax.tree.map(lambda rows: rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1), batch)

    def weighted(rows: Batch, number: jax.Array) -> tuple[Params, Metrics, jax.Array]:
        grads, metrics = stage.gradients(params, rows, jax.random.fold_in(key, number), step)
        weight = metrics.pop("weight", jnp.float32(1))
        return *jax.tree.map(lambda leaf: leaf * weight, (grads, metrics)), weight

    def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, weighted(*part)), None

    shapes = jax.eval_shape(weighted, jax.tree.map(lambda rows: rows[0], split), step)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    *sums, weight = jax.lax.scan(add, zeros, (split, jnp.arange(parts)))[0]
    grads, metrics = jax.tree.map(lambda leaf: leaf / jnp.maximum(weight, 1), sums)
    return grads, metrics


def make_evaluate(
    config: TrainConfig, held_out: Sequence[Batch], mesh: Mesh
) -> Callable[[TrainState], dict[str, float]]:
    """Mean metrics of the averaged weights over the held-out batches; the index of a batch fixes its noise."""
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
    workdir: Path,
    checkpoints: checkpoint.Checkpoints,
    batches: BatchIterator,
    hashes: dict[str, str],
    mesh: Mesh,
) -> TrainState:
    roles = state_roles(config)
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31)  # larger than any step number
    if checkpoints.latest is not None:
        run_folder.check_resume(workdir, config, hashes)
        shapes = jax.eval_shape(lambda k: create_state(config, k), key)
        places = state_sharding(shapes, roles, mesh)
        state, position = checkpoints.restore(checkpoint.abstract_like(shapes, places))
        batches.set_state(position)
        if int(state.step) > config.steps:
            raise UserError(f"{workdir} is at step {int(state.step)}, beyond --steps {config.steps}")
    else:
        state = sharded_init(lambda k: create_state(config, k), roles, key, mesh)
        if config.init_from:
            state = load_initial_weights(config, state, hashes, mesh)
    run_folder.write_run(workdir, config, hashes)
    return state
