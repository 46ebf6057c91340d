"""Does sharding change the results? Every stage at `tiny` size on 8 virtual devices, compared with one
device.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/sharding.py

Writes docs/evaluation/sharding.md with relative differences: of the loss and the gradient in the first step
(all arrays together, and the worst array), and of the loss in the fifth. Takes about ten minutes on two
cores, mostly compilation.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh

from melody_jax.config import OptimizerConfig, TrainConfig
from melody_jax.errors import UserError
from melody_jax.sharding import make_mesh, mesh_context, place_batch, sharded_init
from melody_jax.training.loop import make_step
from melody_jax.training.state import create_state, state_roles

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]
from helpers.stages import STAGES, Batches  # noqa: E402  # the tests' stages and batches

MESHES = ((8, 1, 1), (1, 8, 1), (1, 4, 2))


@dataclass(frozen=True)
class Arguments:
    """Compares sharded training with one device."""

    only: tuple[str, ...] = tuple(STAGES)
    """Stages to compare."""
    out: Path = ROOT / "docs" / "evaluation" / "sharding.md"
    """File of the table."""


def train(stage: Any, mesh: Mesh) -> tuple[Any, float, float]:
    """Gradients and loss of the first step, and the loss of the fifth."""
    config = TrainConfig(stage=stage, optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5), steps=50)
    state = sharded_init(lambda key: create_state(config, key), state_roles(config), jax.random.key(0), mesh)
    source = Batches(stage)
    batches = [
        jax.tree.map(lambda *halves: np.concatenate(halves), next(source), next(source)) for _ in range(5)
    ]
    first = place_batch(batches[0], mesh)
    late_step = jnp.int32(10**6)  # the discriminators train from some step on
    with mesh_context(mesh):
        gradients, metrics = jax.device_get(
            jax.jit(stage.gradients)(state.params, first, jax.random.key(1), late_step)
        )
        step = make_step(config, state)
        last = {}
        for batch in batches:
            state, last = step(state, place_batch(batch, mesh))
    return gradients, float(metrics["loss"]), float(last["loss"])


def difference(gradients: Any, reference: Any) -> tuple[float, float]:
    """Relative norm of the difference: of all arrays together, and of the worst array."""
    pairs = list(zip(jax.tree.leaves(gradients), jax.tree.leaves(reference), strict=True))
    differences = [float(np.linalg.norm(a - b)) for a, b in pairs]
    sizes = [float(np.linalg.norm(b)) for _, b in pairs]
    worst = max(a / s for a, s in zip(differences, sizes, strict=True) if s > 0)
    return float(np.linalg.norm(differences) / np.linalg.norm(sizes)), worst


def main() -> None:
    """Compares, prints and writes the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if len(jax.devices()) != 8:
        raise UserError(
            f"{len(jax.devices())} devices; set XLA_FLAGS=--xla_force_host_platform_device_count=8"
        )
    head = ["stage", "mesh", "loss", "gradient", "gradient, worst array", "loss, step 5"]
    rows = [head, ["---"] * len(head)]
    for name in arguments.only:
        gradients, first, last = train(STAGES[name], make_mesh((1, 1, 1), jax.devices()[:1]))
        for sizes in MESHES:
            others, other_first, other_last = train(STAGES[name], make_mesh(sizes))
            values = (
                abs(other_first / first - 1),
                *difference(others, gradients),
                abs(other_last / last - 1),
            )
            rows.append([name, " x ".join(map(str, sizes)), *(f"{value:.1e}" for value in values)])
            print(" | ".join(rows[-1]), flush=True)
    arguments.out.write_text("".join(f"| {' | '.join(row)} |\n" for row in rows))


if __name__ == "__main__":
    main()
