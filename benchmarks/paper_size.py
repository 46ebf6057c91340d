"""Every network of the paper's size at work on this machine: one training step each, and one clip through all.

    python benchmarks/paper_size.py                 # writes docs/evaluation/paper-size.md
    python benchmarks/paper_size.py --only lm_paper clip

Weights are random, batches hold one item. A step is the gradient of the stage's whole loss (the VAE's with its
discriminators) without the optimiser. Each line is a process of its own, so that its peak memory is its own.
"""

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from melody_jax.config import load_config
from melody_jax.models import dpd, lm, mulan, vae
from melody_jax.models.functional import count
from melody_jax.sampling import generate

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
"""Row -> config, seconds of sound, options."""


@dataclass(frozen=True)
class Arguments:
    """Measures the networks of the paper's size."""

    only: tuple[str, ...] = (*STEPS, "clip")
    """Rows to measure."""
    out: Path = ROOT / "docs" / "evaluation" / "paper-size.md"
    """The table."""


def peak_gb() -> float:
    """Most memory that this process ever held, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds until the result is there, and the result."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result


def example(stage: Any, seconds: float) -> dict[str, Any]:
    """A batch of one item of the stage's kind."""
    rng = np.random.default_rng(0)
    audio = (0.1 * rng.standard_normal((1, round(24_000 * seconds)))).astype(np.float32)
    tokens = round(25 * seconds)
    if stage.batch == "audio":
        return {"audio": audio}
    if stage.batch == "audio_text":
        facts = {name: np.zeros(1, np.int32) for name in ("genre", "mood", "mode", "key")}
        facts |= {"tempo": np.full(1, 120.0, np.float32), "instruments": np.zeros((1, stage.instruments), np.float32)}
        ids = rng.integers(1_000, 30_000, (1, 48)).astype(np.int32)
        return {"audio": audio, "text_ids": ids, "text_mask": np.ones((1, 48), np.float32), "facts": facts}
    latents = stage.model.frames if stage.name == "dpd" else tokens
    return {
        "semantic_tokens": rng.integers(0, 1024, (1, tokens)).astype(np.int32),
        "prefix_tokens": rng.integers(0, 1024, (1, 12)).astype(np.int32),
        "latents": rng.standard_normal((1, latents, 16)).astype(np.float32),
    }


def training_step(row: str) -> list[str]:
    """One forward and one backward pass of a row of STEPS: cells of the table."""
    name, seconds, options = STEPS[row]
    stage = load_config(ROOT / "configs" / f"{name}.py", options).stage
    params = jax.jit(stage.init)(jax.random.key(0))
    batch, late = example(stage, seconds), jnp.int32(10**6)
    step = jax.jit(stage.gradients).lower(params, batch, jax.random.key(1), late)
    compiling, step = timed(step.compile)
    (first, result), (again, _) = (timed(step, params, batch, jax.random.key(1), late) for _ in range(2))
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


def clip(_: str) -> list[list[str]]:
    """10 s through the whole cascade at 5 guided steps: a line for each part."""
    config = generate.SamplerConfig(mulan=mulan.PAPER, lm=lm.PAPER, dpd=dpd.PAPER, lm_guided=True)
    key, rng = jax.random.key(0), np.random.default_rng(0)
    keys = generate.item_keys(jnp.zeros(1, jnp.int32))
    ids, mask = rng.integers(1_000, 30_000, (1, 16)).astype(np.int32), np.ones((1, 16), np.float32)
    lines, total = [], 0.0

    def part(name: str, init: Callable[..., Any], function: Callable[..., jax.Array], *arguments: Any) -> jax.Array:
        nonlocal total
        params = jax.jit(init)(key)
        run = jax.jit(function).lower(params, *arguments).compile()
        seconds, result = timed(run, params, *arguments)
        total += seconds
        shape = " x ".join(map(str, result.shape))
        finite = "yes" if bool(jnp.isfinite(result).all()) else "NO"
        lines.append(
            [f"clip: {name}", f"{count(params) / 1e6:.1f}", shape, "", f"{seconds:.1f}", f"{peak_gb():.1f}", finite]
        )
        return result

    def fresh_mulan(key: jax.Array) -> dict[str, Any]:
        books = jax.random.normal(key, (config.mulan.levels, config.mulan.codes, config.mulan.embedding))
        return mulan.init(config.mulan, key) | {"text_mean": jnp.zeros(config.mulan.embedding), "codebooks": books}

    prefix = part("text", fresh_mulan, lambda p, i, m: generate.prompt_to_prefix(p, config.mulan, i, m), ids, mask)
    tokens = part(
        "LM", lambda k: lm.init(config.lm, k),
        lambda p, x: generate.prefix_to_tokens(p, config, x, keys, jnp.float32(1), jnp.float32(2)), prefix,
    )  # fmt: skip
    latents = part(
        "diffusion, 5 steps", lambda k: dpd.init(config.dpd, k),
        lambda p, x, t: generate.tokens_to_latents(p, config, x, t, keys, jnp.float32(2.5)), prefix, tokens,
    )  # fmt: skip
    part("decoder", lambda k: vae.init(vae.PAPER, k), lambda p, z: vae.decode(p, vae.PAPER, z), latents)
    lines.append(["clip: all", "", "10 s", "", f"{total:.1f}", f"{peak_gb():.1f}", ""])
    return lines


def main() -> None:
    """Measures, prints, writes the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    head = ["network", "M parameters", "of", "compiling, s", "seconds", "peak GB", "finite"]
    rows: list[list[str]] = []
    for row in arguments.only:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found = pool.submit(clip if row == "clip" else training_step, row).result()
        rows += found if row == "clip" else [found]
        print(" | ".join(rows[-1]), flush=True)
    table = [head, ["---"] * len(head), *rows]
    arguments.out.write_text("".join(f"| {' | '.join(line)} |\n" for line in table))


if __name__ == "__main__":
    main()
