"""Utilisation of this machine in training: a step of every stage at `small` size, relative to a matrix
product.

    python benchmarks/utilisation.py                        # writes docs/evaluation/utilisation.md
    python benchmarks/utilisation.py --only lm_small --trace profile

FLOPs count matrix products and convolutions in the traced step (`melody_jax/flops.py`), including optimiser
and discriminators. The peak is measured before and after each stage in the same process. Batches are random.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from melody_jax.runtime import tune_allocator

if __name__ == "__main__":
    tune_allocator()

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from melody_jax.composer import facts
from melody_jax.config import load_config, with_fields
from melody_jax.flops import matmul_cost
from melody_jax.scale.programs import example
from melody_jax.sharding import make_mesh, sharded_init
from melody_jax.training.loop import make_step
from melody_jax.training.state import create_state, state_roles
from melody_jax.training.utilisation import measured_flops

ROOT = Path(__file__).parents[1]
BATCHES = {"lm_small": 8, "dpd_small": 4, "vae_small": 16, "mulan_small": 8, "tokenizer_small": 8}
"""Config -> items per step."""


@dataclass(frozen=True)
class Arguments:
    """Measures training steps on this machine."""

    only: tuple[str, ...] = tuple(BATCHES)
    """Configs to measure."""
    steps: int = 5
    """Timed steps per config; the fastest counts."""
    trace: str = ""
    """Folder for a profile of one more step; empty: none."""
    out: Path = ROOT / "docs" / "evaluation" / "utilisation.md"
    """File of the table."""


def fill(shapes: Any) -> Any:
    """A random batch of the given shapes: ids 0 and 1, and quiet noise."""
    rng = np.random.default_rng(0)

    def leaf(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if np.issubdtype(shape.dtype, np.integer):
            return rng.integers(0, 2, shape.shape).astype(shape.dtype)
        return (0.1 * rng.standard_normal(shape.shape)).astype(shape.dtype)

    return jax.tree.map(leaf, shapes)


def measure(name: str, steps: int, trace: str) -> list[str]:
    """Cells of the table for one config."""
    config = load_config(ROOT / "configs" / f"{name}.py")
    model = with_fields(config.stage.model, dtype="float32", remat="none")
    config = replace(config, stage=replace(config.stage, model=model))
    config = replace(config, data=replace(config.data, batch_size=BATCHES[name]))
    state = sharded_init(
        lambda key: create_state(config, key), state_roles(config), jax.random.key(0), make_mesh((1, 1, 1))
    )
    batch = jax.device_put(fill(example(config)))
    if "facts" in batch:
        labels = {name: jnp.asarray(value) for name, value in facts.labels({"tempo_bpm": 120.0}).items()}
        batch["facts"] = {name: jnp.broadcast_to(x, batch["facts"][name].shape) for name, x in labels.items()}
    traced = make_step(config, state).trace(state, batch)
    step = traced.lower().compile()
    flops = matmul_cost(traced.jaxpr)[0]
    peaks = [measured_flops()]
    best = float("inf")
    for _ in range(steps + 1):  # the first step is a warm-up
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        best = min(best, time.perf_counter() - start)
    peaks.append(measured_flops())
    if trace:
        with jax.profiler.trace(f"{trace}/{name}"):
            jax.block_until_ready(step(state, batch))
    assert np.isfinite(metrics["loss"]), name
    peak = max(peaks)
    rates = [f"{rate / 1e9:.0f}" for rate in (flops / best, peak)]
    return [
        name,
        str(BATCHES[name]),
        f"{flops / 1e12:.3f}",
        f"{best:.2f}",
        *rates,
        f"{100 * flops / best / peak:.0f} %",
    ]


def main() -> None:
    """Measures, prints and writes the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    head = [
        "config",
        "items",
        "TFLOP per step",
        "seconds per step",
        "GFLOP/s",
        "matrix product, GFLOP/s",
        "share",
    ]
    rows = [head, ["---"] * len(head)]
    for name in arguments.only:
        rows.append(measure(name, arguments.steps, arguments.trace))
        print(" | ".join(rows[-1]), flush=True)
    arguments.out.write_text("".join(f"| {' | '.join(row)} |\n" for row in rows))


if __name__ == "__main__":
    main()
