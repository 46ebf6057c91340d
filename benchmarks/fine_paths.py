"""How long do DPD's fine paths take: the SRU, the linear recurrence, local attention (docs/studies/fine_path.md)?

    python benchmarks/fine_paths.py                       # writes docs/evaluation/fine-paths.md
    python benchmarks/fine_paths.py --sizes mini

Weights are random. A pass is one velocity of one window with its condition; a step is the gradient of a mean square of
those of a batch. The three take turns, round by round, so that a noisy machine is noisy for all of them.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from melody_jax.models import denoiser, dpd, functional
from melody_jax.models.dpd import DPDConfig, Fine

ROOT = Path(__file__).parents[1]
SIZES: dict[str, tuple[DPDConfig, int]] = {
    "ablation": (dpd.ABLATION, 8),
    "mini": (dpd.MINI, 8),
    "paper": (dpd.PAPER, 0),
}
"""Size -> config, items of a training step; 0: no step."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Times the fine paths on this machine."""

    sizes: tuple[str, ...] = tuple(SIZES)
    """Sizes to time."""
    rounds: int = 9
    """Turns of each; the median counts."""
    out: Path = ROOT / "docs" / "evaluation" / "fine-paths.md"
    """The table."""


def programs(config: DPDConfig, items: int) -> dict[str, Callable[[], jax.Array]]:
    """What is timed of one network, compiled: "pass", and "step" if there are items for one."""
    params = denoiser.init(config, jax.random.key(0))

    @partial(jax.jit, static_argnums=2)
    def velocity(params: functional.Params, key: jax.Array, batch: int) -> jax.Array:
        noisy = jax.random.normal(key, (batch, config.frames, config.latent_dim))
        tokens = jnp.zeros((batch, config.tokens(config.frames)), jnp.int32)
        return denoiser.velocity(params, config, noisy, jnp.full(noisy.shape[:2], 0.7), tokens, batch)

    step = jax.jit(jax.grad(lambda params: jnp.square(velocity(params, jax.random.key(1), items)).mean()))
    timed = {"pass": lambda: velocity(params, jax.random.key(1), 1)}
    return timed | ({"step": lambda: step(params)} if items else {})


def rows(size: str, rounds: int) -> list[str]:
    """Lines of the table for one size."""
    config, items = SIZES[size]
    forms = {fine: dataclasses.replace(config, fine=fine) for fine in get_args(Fine)}
    timed = {(fine, what): run for fine, form in forms.items() for what, run in programs(form, items).items()}
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in timed}
    for number in tqdm(range(rounds + 1), desc=size, unit="round"):  # the first one compiles
        for name, run in timed.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if number:
                seconds[name].append(time.perf_counter() - began)
    lines = []
    for fine, form in forms.items():
        cells = [
            f"{np.median(seconds[fine, what]):.4g}" if (fine, what) in seconds else "" for what in ("pass", "step")
        ]
        count = functional.count(jax.eval_shape(partial(denoiser.init, form), jax.random.key(0)))
        lines.append(
            f"| {size} | {fine} | {count / 1e6:.4g} | {denoiser.flops(form) / 1e9:.4g} | {' | '.join(cells)} |"
        )
    return lines


def main() -> None:
    """Writes the table."""
    arguments = tyro.cli(Arguments)
    table = [line for size in arguments.sizes for line in rows(size, arguments.rounds)]
    text = [
        "# DPD's fine paths: how long they take",
        "",
        f"`python benchmarks/fine_paths.py --sizes {' '.join(arguments.sizes)}`: random weights, float32, nothing else "
        "running; the median of "
        f"{arguments.rounds} turns. A step is of 8 windows, without the optimiser. {jax.device_count()} "
        f"{jax.devices()[0].device_kind} device(s). What they are worth: docs/studies/fine_path.md.",
        "",
        "| size | fine path | parameters, M | GFLOP a pass | s a pass | s a step |",
        "| --- | --- | --- | --- | --- | --- |",
        *table,
    ]
    arguments.out.write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
