"""The sampler at the paper's size beside MusicGen-small on this machine, and beside what the machine can do.

    python benchmarks/peers.py --peer_python other/bin/python      # an environment with torch and transformers
    python benchmarks/peers.py --peer_python ""                    # ours alone

10 s of audio, one clip, random weights; writes docs/evaluation/peers.md. Each part's floor is what it must at least
take: for the language model its bytes over the rate at which memory is read, a token at a time; for the others their
matrix products over the rate of a large one. Everything is compiled before it is timed; rounds of ours and of the
peer's alternate, the best of each counts. Leave the machine alone meanwhile.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from melody_jax.process import tune_allocator

    tune_allocator()

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from melody_jax.models import denoiser, dpd, few_rows, lm, mulan, vae
from melody_jax.models.functional import count
from melody_jax.sampling import generate
from melody_jax.sampling.generate import Controls, SamplerConfig
from melody_jax.sampling.prompts import targets_to_prefix, text_targets
from melody_jax.scale.counting import matmul_cost

ROOT = Path(__file__).parents[1]
SECONDS = 10.0
CONFIG = SamplerConfig(lm=lm.PAPER, dpd=dpd.PAPER)
WAYS = {
    "5 guided steps": ("LM, guided", "diffusion, 5 guided steps"),
    "5 steps": ("LM, guided", "diffusion, 5 steps"),
    "1 step": ("LM, guided", "diffusion, 1 step"),
    "1 step, LM not guided": ("LM", "diffusion, 1 step"),
}
"""A clip -> the parts it takes, beside text and decoder."""


@dataclass(frozen=True)
class Arguments:
    """Times the paper's size beside MusicGen-small."""

    peer_python: str = sys.executable
    """A Python with torch and transformers; empty leaves the peer out."""
    rounds: int = 2
    """Alternating rounds of ours and the peer's."""
    out: Path = ROOT / "docs" / "evaluation" / "peers.md"
    """The table."""


@dataclass
class Part:
    """Something timed."""

    run: Callable[[], Any]
    floor: float
    """Seconds it must take."""
    seconds: float = float("inf")
    """The best so far."""


def best(function: Callable[[], Any], runs: int) -> float:
    """Least seconds of some runs."""
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(function())
        taken.append(time.perf_counter() - start)
    return min(taken)


def memory_rate() -> float:
    """GB/s at which 1.6 GB are read: by matrix-vector products, or summed in as many threads as there are cores."""
    matrices = [jnp.ones((4096, 4096)) for _ in range(24)]
    size, row = sum(m.nbytes for m in matrices) / 1e9, jnp.ones((1, 4096))
    products = jax.jit(lambda row, matrices: [few_rows.product(row, m) for m in matrices])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        views = [np.asarray(m) for m in matrices]
        summed = best(lambda: list(pool.map(np.sum, views)), 5)
    return size / min(summed, best(lambda: products(row, matrices), 5))


def matmul_rate() -> float:
    """GFLOP/s of a float32 product of 4096 x 4096 matrices."""
    square = jnp.ones((4096, 4096))
    return 2 * 4096**3 / best(lambda: jnp.matmul(square, square), 5) / 1e9


def parts(memory: float, matmul: float) -> dict[str, Part]:
    """Every part, compiled, on the output of the one before it."""
    rng, found = np.random.default_rng(0), {}

    def add(name: str, params: Any, function: Callable[..., jax.Array], *inputs: Any, bytes_read: float = 0) -> Any:
        jitted = jax.jit(function)
        floor = bytes_read / memory / 1e9 or matmul_cost(jax.make_jaxpr(function)(params, *inputs))[0] / matmul / 1e9
        program = jitted.lower(params, *inputs).compile()
        found[name] = Part(lambda: program(params, *inputs), floor)
        return jax.block_until_ready(program(params, *inputs))

    def fresh(init: Callable[[jax.Array], Any]) -> Any:
        return jax.block_until_ready(jax.jit(init)(jax.random.key(0)))

    text, width = mulan.PAPER, mulan.PAPER.embedding
    tower = fresh(lambda key: mulan.init(text, key)) | {"text_mean": jnp.zeros(width)}
    tower |= {"codebooks": jax.random.normal(jax.random.key(1), (text.levels, text.codes, width))}
    ids, mask = rng.integers(1_000, 30_000, (1, 16)).astype(np.int32), np.ones((1, 16), np.float32)
    prefix = add("text", tower, lambda p, i, m: targets_to_prefix(p, text, text_targets(p, text, i, m)), ids, mask)

    number, whole = jnp.ones(1), jnp.zeros(1, jnp.int32)
    asked = Controls(
        prefix, jnp.full_like(prefix, -1), whole, whole, number, whole + 250, number, 2 * number, 2.5 * number
    )
    keys, language = generate.item_keys(asked), fresh(lambda key: lm.init(CONFIG.lm, key))
    read = 4 * CONFIG.tokens * (count(language["blocks"]) + count(language["head"]))
    for name, guided in (("LM", False), ("LM, guided", True)):
        config = replace(CONFIG, lm_guided=guided)
        draw = lambda p, c, config=config: generate.prefix_to_tokens(p, config, c, keys)  # noqa: E731
        tokens = add(name, language, draw, asked, bytes_read=read)

    latents, network = None, fresh(lambda key: denoiser.init(CONFIG.dpd, key))
    for name, steps, guided in (("5 guided steps", 5, True), ("5 steps", 5, False), ("1 step", 1, False)):
        config = replace(CONFIG, steps=steps, guided=guided)
        denoise = lambda p, c, t, config=config: generate.tokens_to_latents(p, config, c, t, keys)  # noqa: E731
        latents = add(f"diffusion, {name}", network, denoise, asked, tokens)

    codec = fresh(lambda key: vae.init(vae.PAPER, key))
    add("decoder", codec, lambda p, z: vae.decode(p, vae.PAPER, z), latents)
    return found


def peer(python: str) -> dict[str, Any]:
    """One timed run of MusicGen-small in a process of its own."""
    script = [python, str(Path(__file__).with_name("musicgen_small.py"))]
    done = subprocess.run(script, check=True, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return json.loads(done.stdout.splitlines()[-1])


def report(found: dict[str, Part], rates: str, theirs: dict[str, Any] | None) -> str:
    """The page: parts beside their floors, clips beside the peer's."""
    lines = [f"{rates}\n", "| part | seconds | floor | share of the floor |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {p.seconds:.2f} | {p.floor:.2f} | {p.floor / p.seconds:.0%} |" for name, p in found.items()]
    peer_seconds = theirs["seconds"][0] if theirs else None
    lines += ["", "| 10 s of audio | seconds | x real time | x MusicGen-small |", "| --- | --- | --- | --- |"]
    for name, (language, diffusion) in WAYS.items():
        total = sum(found[part].seconds for part in ("text", language, diffusion, "decoder"))
        times = f"{peer_seconds / total:.2f}" if peer_seconds else ""
        lines.append(f"| paper's size, {name} | {total:.1f} | {SECONDS / total:.3f} | {times} |")
    if theirs and peer_seconds:
        size = f"{theirs['decoder_parameters'] / 1e6:.1f} M decoder, torch {theirs['torch']}"
        lines.append(f"| MusicGen-small ({size}) | {peer_seconds:.1f} | {SECONDS / peer_seconds:.3f} | 1 |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints, writes."""
    arguments = tyro.cli(Arguments, description=__doc__)
    memory, matmul = memory_rate(), matmul_rate()
    found, theirs = parts(memory, matmul), None
    for _ in range(arguments.rounds):
        for name, part in found.items():
            part.seconds = min(part.seconds, best(part.run, 1))
            print(f"{name}: {part.seconds:.2f} s, floor {part.floor:.2f} s", flush=True)
        if arguments.peer_python:
            now = peer(arguments.peer_python)
            theirs = min(theirs or now, now, key=lambda result: result["seconds"])
            print(f"MusicGen-small: {theirs['seconds'][0]:.1f} s", flush=True)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, jax {jax.__version__}"
    page = report(found, f"{machine}: memory {memory:.1f} GB/s, matrix product {matmul:.0f} GFLOP/s.", theirs)
    arguments.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
