"""A toy stage for tests of the training loop, its batches, and what a run has written."""

import dataclasses
import json
import os
import signal
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import roles
from melody_jax.config import OptimizerConfig, TrainConfig
from melody_jax.roles import Roles
from melody_jax.training.loop import train
from melody_jax.training.stage import Stage, loss_gradients


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyModel:
    width: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyStage(Stage):
    """A line fit with input noise, and a "discriminator" that chases the model's mean."""

    model: ToyModel = ToyModel()
    noise: float = 0.1
    batch: ClassVar[str] = "audio"
    name: ClassVar[str] = "toy"

    @property
    def roles(self) -> Roles:
        dense = {"kernel": roles.COLUMN, "bias": roles.BIAS}
        return {"model": {"dense": dense}, "discriminator": {"shift": roles.VECTOR}}

    def init(self, key: jax.Array) -> dict[str, Any]:
        kernel = jax.random.normal(key, (self.model.width, self.model.width))
        return {
            "model": {"dense": {"kernel": kernel, "bias": jnp.zeros(self.model.width)}},
            "discriminator": {"shift": jnp.zeros(())},
        }

    def _loss(self, params: Any, batch: Any, key: jax.Array) -> Any:
        x = batch["x"] + self.noise * jax.random.normal(key, batch["x"].shape)
        y = x @ params["model"]["dense"]["kernel"] + params["model"]["dense"]["bias"]
        target = jax.lax.stop_gradient(jnp.mean(y))
        loss = jnp.mean((y - batch["y"]) ** 2) + (params["discriminator"]["shift"] - target) ** 2
        return loss, {"mean": target}

    def gradients(self, params: Any, batch: Any, key: jax.Array, step: jax.Array) -> Any:
        return loss_gradients(self._loss, params, batch, key)

    def evaluate(self, params: Any, batch: Any, key: jax.Array) -> Any:
        return {"loss": self._loss(params, batch, key)[0]}

    def finish(self, model: Any, batches: Any, key: jax.Array) -> Any:
        return model, {}


class ToyBatches:
    """Batch i is a function of i alone; `position` counts those taken. `poison` is the number of a batch with a NaN."""

    def __init__(self, poison: int = -1, interrupt: int = -1) -> None:
        self.position = 0
        self.poison = poison
        self.interrupt = interrupt

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.position)
        x = rng.normal(size=(8, 8)).astype(np.float32)
        if self.position == self.poison:
            x[0, 0] = np.nan
        if self.position == self.interrupt:
            os.kill(os.getpid(), signal.SIGTERM)
        self.position += 1
        return {"x": x, "y": x[:, ::-1].copy()}

    def get_state(self) -> dict[str, int]:
        return {"position": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["position"]

    def records_of(self, state: dict[str, int]) -> list[str]:
        return [f"toy: {state['position']}.{row}" for row in range(8)]


def toy_config(workdir: Any, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        stage=ToyStage(),
        optimizer=OptimizerConfig(learning_rate=0.03, warmup_steps=5),
        steps=50,
        save_every=25,
        eval_every=25,
        eval_batches=2,
        log_every=5,
        keep_last=5,
        workdir=str(workdir),
    )
    return dataclasses.replace(config, **changes)


def run(config: TrainConfig, batches: Any = None) -> Any:
    held_out = ToyBatches()
    held_out.position = 10_000
    return train(config, batches or ToyBatches(), [next(held_out), next(held_out)], quiet=True)


def rows(workdir: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds" and not key.startswith("time/")}
