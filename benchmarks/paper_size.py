"""One training step of every network of the paper's size on this machine (`peers.py` times sampling).

    python benchmarks/paper_size.py                 # writes docs/evaluation/paper-size.md
    python benchmarks/paper_size.py --only lm_paper vae_paper

Weights are random and batches have one item. A step computes the gradients of the stage's loss (for the VAE
including its discriminators) without the optimiser. Each row runs in a separate process, which gives its own
peak memory.
"""

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from device import random_batch

from melody_jax.audio_format import SAMPLE_RATE, TOKEN_RATE
from melody_jax.config import TrainConfig, load_config
from melody_jax.models.functional import count

ROOT = Path(__file__).parents[1]
STEPS: dict[str, tuple[str, float, list[str]]] = {
    "mulan_paper": ("mulan_paper", 10.24, []),
    "tokenizer_paper": ("tokenizer_paper", 10.0, []),
    "lm_paper": ("lm_paper", 10.0, []),
    "dpd_paper": ("dpd_paper", 10.0, []),
    "dpd_paper_aligned": ("dpd_paper_aligned", 10.24, []),
    "vae_paper": ("vae_paper", 1.0, []),
    "vae_paper, remat": ("vae_paper", 10.0, ["--stage.model.codec.remat", "blocks"]),
}
"""Row -> config, seconds of audio, options."""


@dataclass(frozen=True)
class Arguments:
    """Measures the networks of the paper's size."""

    only: tuple[str, ...] = tuple(STEPS)
    """Rows to measure."""
    out: Path = ROOT / "docs" / "evaluation" / "paper-size.md"
    """File of the table."""


def peak_gb() -> float:
    """Peak memory of this process, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds until the result is ready, and the result."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result


def one_item(config: TrainConfig, seconds: float) -> dict[str, Any]:
    """A training batch with one item of the given length."""
    data = replace(
        config.data,
        batch_size=1,
        crop_samples=round(SAMPLE_RATE * seconds),
        window_tokens=round(TOKEN_RATE * seconds),
    )
    return random_batch(replace(config, data=data))


def training_step(row: str) -> list[str]:
    """One forward and backward pass for a row of STEPS: cells of the table."""
    name, seconds, options = STEPS[row]
    config = load_config(ROOT / "configs" / f"{name}.py", options)
    stage = config.stage
    params = jax.jit(stage.init)(jax.random.key(0))
    batch = one_item(config, seconds)
    late_step = jnp.int32(10**6)  # the discriminators train from some step on
    step = jax.jit(stage.gradients).lower(params, batch, jax.random.key(1), late_step)
    compiling, step = timed(step.compile)
    (first, result), (again, _) = (timed(step, params, batch, jax.random.key(1), late_step) for _ in range(2))
    gradients, metrics = result
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((gradients, metrics)))
    cells = [
        row,
        f"{count(params['model']) / 1e6:.1f}",
        f"{seconds:g} s",
        f"{compiling:.0f}",
        f"{min(first, again):.1f}",
    ]
    return [*cells, f"{peak_gb():.1f}", "yes" if finite else "NO"]


def main() -> None:
    """Measures, prints and writes the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    head = ["network", "parameters, M", "audio", "compilation, s", "step, s", "peak memory, GB", "finite"]
    rows: list[list[str]] = []
    for row in arguments.only:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            rows.append(pool.submit(training_step, row).result())
        print(" | ".join(rows[-1]), flush=True)
    table = [head, ["---"] * len(head), *rows]
    arguments.out.write_text("".join(f"| {' | '.join(line)} |\n" for line in table))


if __name__ == "__main__":
    main()
