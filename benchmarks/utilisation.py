"""How much of this machine does training use? A step of every stage at `small`, against the best matrix product here.

    python benchmarks/utilisation.py                        # writes docs/evaluation/utilisation.md
    python benchmarks/utilisation.py --only lm_small --trace profile

FLOPs are those of matrix products and convolutions in the traced step (`melody_jax/flops.py`), optimiser and
discriminators included. The peak is measured before and after each stage in the same process. Batches are random.
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
from melody_jax.config import load_config
from melody_jax.flops import matmul_cost
from melody_jax.scale.programs import example
from melody_jax.sharding import make_mesh, sharded_init
from melody_jax.training.loop import make_step
from melody_jax.training.state import create_state
from melody_jax.training.utilisation import measured_flops

ROOT = Path(__file__).parents[1]
BATCHES = {"lm_small": 8, "dpd_small": 4, "vae_small": 16, "mulan_small": 8, "tokenizer_small": 8}
"""Config -> items a step."""


@dataclass(frozen=True)
class Arguments:
    """Measures training steps on this machine."""

    only: tuple[str, ...] = tuple(BATCHES)
    """Configs to measure."""
    steps: int = 5
    """Timed steps of each; the fastest counts."""
    trace: str = ""
    """Folder for a profile of one more step; empty: none."""
    out: Path = ROOT / "docs" / "evaluation" / "utilisation.md"
    """The table."""


def fill(shapes: Any) -> Any:
    """A random batch of the given shapes: ids of 0 and 1, quiet noise."""
    rng = np.random.default_rng(0)

    def leaf(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if np.issubdtype(shape.dtype, np.integer):
            return rng.integers(0, 2, shape.shape).astype(shape.dtype)
        return (0.1 * rng.standard_normal(shape.shape)).astype(shape.dtype)

    return jax.tree.map(leaf, shapes)


def measure(name: str, steps: int, trace: str) -> list[str]:
    """Cells of the table for one config."""
    config = load_config(ROOT / "configs" / f"{name}.py")
    config = replace(config, data=replace(config.data, batch_size=BATCHES[name]))
    state = sharded_init(lambda key: create_state(config, key), jax.random.key(0), make_mesh((1, 1, 1)))
    batch = jax.device_put(fill(example(config)))
    if "facts" in batch:
        known = {name: jnp.asarray(value) for name, value in facts.labels({"tempo_bpm": 120.0}).items()}
        batch["facts"] = {name: jnp.broadcast_to(x, batch["facts"][name].shape) for name, x in known.items()}
    traced = make_step(config, state).trace(state, batch)
    step, flops = traced.lower().compile(), matmul_cost(traced.jaxpr)[0]
    peaks, best = [measured_flops()], float("inf")
    for _ in range(steps + 1):  # the first one warms up
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        best = min(best, time.perf_counter() - began)
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
    """Measures, prints, writes."""
    arguments = tyro.cli(Arguments, description=__doc__)
    head = ["config", "items", "TFLOP a step", "seconds", "GFLOP/s", "matrix product, GFLOP/s", "share"]
    rows = [head, ["---"] * len(head)]
    for name in arguments.only:
        rows.append(measure(name, arguments.steps, arguments.trace))
        print(" | ".join(rows[-1]), flush=True)
    arguments.out.write_text("".join(f"| {' | '.join(row)} |\n" for row in rows))


if __name__ == "__main__":
    main()
