"""Speed of the diffusion's networks: backbones, and DPD's fine paths (docs/studies/).

    python benchmarks/denoisers.py                       # writes docs/evaluation/denoisers.md

Weights are random. A pass computes the velocity of one window with its condition; a step computes the
gradient of the mean squared velocity of a batch. Networks of one size alternate in every round, so other load
affects all of them.
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

from melody_jax.models import denoiser, dit, dpd, functional, unet1d, unet2d
from melody_jax.models.conditioning import DenoiserConfig, shared_fields
from melody_jax.models.dpd import DPDConfig, FinePath

ROOT = Path(__file__).parents[1]
ITEMS = 8
"""Windows per step."""


def fine_paths(config: DPDConfig) -> dict[str, DenoiserConfig]:
    """DPD with each of its fine paths."""
    return {
        f"DPD, {fine.replace('_', ' ')}": dataclasses.replace(config, fine=fine)
        for fine in get_args(FinePath)
    }


SIZES: dict[str, dict[str, DenoiserConfig]] = {
    "ablation": fine_paths(dpd.ABLATION)
    | {"UNet-1D": unet1d.ABLATION, "UNet-2D": unet2d.ABLATION, "DiT": dit.ABLATION},
    "mini": fine_paths(dpd.MINI) | {"DiT": dit.DiTConfig(**shared_fields(dpd.MINI), blocks=7, heads=8)},
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Times the networks on this machine."""

    sizes: tuple[str, ...] = tuple(SIZES)
    """Sizes to time."""
    rounds: int = 9
    """Timed rounds; the table has their median."""
    out: Path = ROOT / "docs" / "evaluation" / "denoisers.md"
    """File of the table."""


def programs(config: DenoiserConfig) -> dict[str, Callable[[], jax.Array]]:
    """The timed programs of one network: "pass" and "step"."""
    params = denoiser.init(config, jax.random.key(0))

    @partial(jax.jit, static_argnums=2)
    def velocity(params: functional.Params, key: jax.Array, batch: int) -> jax.Array:
        noisy = jax.random.normal(key, (batch, config.frames, config.latent_dim))
        tokens = jnp.zeros((batch, config.tokens(config.frames)), jnp.int32)
        return denoiser.velocity(params, config, noisy, jnp.full(noisy.shape[:2], 0.7), tokens, batch)

    step = jax.jit(jax.grad(lambda params: jnp.square(velocity(params, jax.random.key(1), ITEMS)).mean()))
    return {"pass": lambda: velocity(params, jax.random.key(1), 1), "step": lambda: step(params)}


def rows(size: str, rounds: int) -> list[str]:
    """Lines of the table for one size."""
    timed = {
        (name, program): run
        for name, config in SIZES[size].items()
        for program, run in programs(config).items()
    }
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in timed}
    for number in tqdm(range(rounds + 1), desc=size, unit="round"):  # the first round compiles
        for name, run in timed.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if number:
                seconds[name].append(time.perf_counter() - start)
    lines = []
    for name, config in SIZES[size].items():
        cells = [f"{np.median(seconds[name, program]):.4g}" for program in ("pass", "step")]
        count = functional.count(jax.eval_shape(partial(denoiser.init, config), jax.random.key(0)))
        lines.append(
            f"| {size} | {name} | {count / 1e6:.4g} | {denoiser.flops(config) / 1e9:.4g} | {' | '.join(cells)} |"
        )
    return lines


def main() -> None:
    """Writes the table."""
    arguments = tyro.cli(Arguments)
    table = [line for size in arguments.sizes for line in rows(size, arguments.rounds)]
    text = [
        "# Speed of the diffusion's networks",
        "",
        f"`python benchmarks/denoisers.py --sizes {' '.join(arguments.sizes)}`: random weights, float32, on an "
        f"otherwise idle machine; median of {arguments.rounds} rounds. A step has {ITEMS} windows and no optimiser. "
        f"{jax.device_count()} {jax.devices()[0].device_kind} device(s). docs/studies.md compares their quality.",
        "",
        "| size | network | parameters, M | GFLOP per pass | seconds per pass | seconds per step |",
        "| --- | --- | --- | --- | --- | --- |",
        *table,
    ]
    arguments.out.write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
