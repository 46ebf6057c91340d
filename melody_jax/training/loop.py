"""The training loop, blind to the stage. Its order is fixed: evaluate, save, next batch, step, log.

Saving before `next` keeps the batch: a run resumed from step n sees the same batches as one never interrupted, and
with `key = fold_in(seed, step)` it ends with the same bits.
"""

import time
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
from melody_jax.training import checkpoint
from melody_jax.training.metrics import MetricLog, mean
from melody_jax.training.sharding import make_mesh, place_batch, sharded_init, state_sharding, using
from melody_jax.training.stage import Batch, Metrics, Stage
from melody_jax.training.state import TrainState, create_state, ema_update, learning_rate, make_optimizer


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
        UserError: the loss is not finite, the run folder holds another run, or the disk is full.
    """
    workdir, mesh = Path(config.workdir), make_mesh(config.mesh)
    checkpoints = checkpoint.Checkpoints(workdir, config.keep_last, config.keep_every)
    state = _begin(config, checkpoints, batches, hashes or {}, mesh)
    step, evaluate = make_step(config, state), make_evaluate(config, held_out, mesh)
    start = int(state.step)
    rate = learning_rate(config.optimizer, config.optimizer.learning_rate, config.steps)
    log = MetricLog(workdir, start, config.steps, config.stage.name, config.log_every, rate, quiet)
    alarm = checkpoint.Alarm(config)
    try:
        for n in range(start, config.steps + 1):
            last = n == config.steps
            if n > start and (last or (config.eval_every and n % config.eval_every == 0)):
                log.write(n, {f"eval/{name}": value for name, value in evaluate(state).items()})
            save, stop = alarm.due(n)
            if n > start and (last or save):
                log.flush()
                checkpoints.save(state, batches.get_state())
            if last or stop:
                break
            asked = time.monotonic()
            rows = next(batches)
            log.waited(time.monotonic() - asked)
            batch = place_batch(rows, mesh)
            with using(mesh):
                state, metrics = step(state, batch)
            log.add(n + 1, metrics)
    finally:
        try:
            log.close()
        finally:
            checkpoints.close()
            alarm.close()
    return state


def make_step(config: TrainConfig, state: TrainState) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The one compiled function of training; it donates the state."""
    stage: Stage = config.stage
    optimizer = make_optimizer(config.optimizer, config.steps)
    seed_key = jax.random.key(config.seed)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(seed_key, state.step)
        grads, metrics = accumulated(stage, config.accumulate, state.params, batch, key, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = ema_update(state.ema, params["model"], state.step, config.ema_decay)  # type: ignore[index]
        norms = {name: optax.tree.norm(part) for name, part in grads.items()}
        metrics = metrics | {"gradient_norm": optax.tree.norm(norms)}
        metrics |= {f"gradient_norm/{name}": norm for name, norm in norms.items() if len(norms) > 1}
        return TrainState(state.step + 1, params, opt_state, ema), metrics  # type: ignore[arg-type]

    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(placed, None))


def accumulated(
    stage: Stage, parts: int, params: Params, batch: Batch, key: jax.Array, step: jax.Array
) -> tuple[Params, Metrics]:
    """`stage.gradients` as the mean over parts of the batch, worked off one after the other.

    Parts have equally many items, but weigh by the metric "weight" if the stage has one: what its loss is a mean over.
    """
    if parts == 1:
        return stage.gradients(params, batch, key, step)
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
    stage: Stage = config.stage
    seed_key = jax.random.key(config.seed + 1)
    compiled = jax.jit(lambda params, batch, i: stage.evaluate(params, batch, jax.random.fold_in(seed_key, i)))

    def evaluate(state: TrainState) -> dict[str, float]:
        params = state.params | {"model": state.ema}
        with using(mesh):
            rows = [compiled(params, place_batch(batch, mesh), jnp.int32(i)) for i, batch in enumerate(held_out)]
        return mean(jax.device_get(rows))

    return evaluate


def _begin(
    config: TrainConfig, checkpoints: checkpoint.Checkpoints, batches: BatchIterator, hashes: dict[str, str], mesh: Mesh
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
            shapes = jax.eval_shape(lambda: state.ema)
            checkpoint.read_run(Path(config.init_from))
            source = checkpoint.Checkpoints(Path(config.init_from))
            ema = source.restore_ema(checkpoint.abstract_like(shapes, state_sharding(shapes, mesh)))
            source.close()
            model = jax.tree.map(jnp.copy, ema)  # donated beside it: they must not share memory
            state = state._replace(params=state.params | {"model": model}, ema=ema)
    checkpoint.write_run(workdir, config, hashes)
    return state
