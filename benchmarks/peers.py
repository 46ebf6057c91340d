"""The sampler at the paper's size, and as `modern`, beside MusicGen-small on this machine and what the machine can do.

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
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from melody_jax.runtime import tune_allocator

    tune_allocator()

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from melody_jax.flops import matmul_cost
from melody_jax.models import denoiser, dpd, lm, mulan, vae
from melody_jax.models.functional import count
from melody_jax.models.platform import matvec
from melody_jax.models.vae import VAEConfig
from melody_jax.sampling import windows
from melody_jax.sampling.prompts import targets_to_prefix, text_targets
from melody_jax.sampling.settings import SamplingSettings
from melody_jax.sampling.windows import Controls, SamplerConfig

ROOT = Path(__file__).parents[1]
SECONDS = 10.0
PAPER = SamplerConfig(lm=lm.PAPER, dpd=dpd.PAPER)
MODERN = SamplerConfig(lm=lm.MODERN, dpd=replace(dpd.MODERN, guidance_range=(1.0, 4.0)))
WAYS = {
    "paper's size, 5 guided steps": ("LM, guided", "diffusion, 5 guided steps", "decoder"),
    "paper's size, 5 steps": ("LM, guided", "diffusion, 5 steps", "decoder"),
    "paper's size, 1 step": ("LM, guided", "diffusion, 1 step", "decoder"),
    "paper's size, 1 step, LM not guided": ("LM", "diffusion, 1 step", "decoder"),
    "modern, 4 steps": ("modern LM, guided", "modern diffusion, 4 steps", "modern decoder"),
    "modern, 2 steps": ("modern LM, guided", "modern diffusion, 2 steps", "modern decoder"),
    "modern, 2 steps, LM not guided": ("modern LM", "modern diffusion, 2 steps", "modern decoder"),
}
"""A clip -> the parts it takes, beside the text."""


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
    products = jax.jit(lambda row, matrices: [matvec(row, m) for m in matrices])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        views = [np.asarray(m) for m in matrices]
        summed = best(lambda: list(pool.map(np.sum, views)), 5)
    return size / min(summed, best(lambda: products(row, matrices), 5))


def matmul_rate() -> float:
    """GFLOP/s of a float32 product of 4096 x 4096 matrices."""
    square = jnp.ones((4096, 4096))
    return 2 * 4096**3 / best(lambda: jnp.matmul(square, square), 5) / 1e9


class Bench:
    """Compiles parts, each on the output of the one before it, and keeps them by name with their floors."""

    def __init__(self) -> None:
        self.memory, self.matmul, self.parts = memory_rate(), matmul_rate(), dict[str, Part]()

    def add(
        self, name: str, params: Any, function: Callable[..., jax.Array], *inputs: Any, read: float = 0
    ) -> Any:
        """The part's output. `read`: bytes it must read, where these are its floor."""
        jitted = jax.jit(function)
        flops = 0 if read else matmul_cost(jax.make_jaxpr(function)(params, *inputs))[0]
        program = jitted.lower(params, *inputs).compile()
        floor = read / self.memory / 1e9 + flops / self.matmul / 1e9
        self.parts[name] = Part(lambda: program(params, *inputs), floor)
        return jax.block_until_ready(program(params, *inputs))

    def text(self) -> jax.Array:
        """Prefix tokens of a text of 16 pieces."""
        config, width, rng = mulan.PAPER, mulan.PAPER.embedding, np.random.default_rng(0)
        tower = fresh(lambda key: mulan.init(config, key)) | {"text_mean": jnp.zeros(width)}
        tower |= {"codebooks": jax.random.normal(jax.random.key(1), (config.levels, config.codes, width))}
        ids, mask = rng.integers(1_000, 30_000, (1, 16)).astype(np.int32), np.ones((1, 16), np.float32)
        embed = lambda p, i, m: targets_to_prefix(p, config, text_targets(p, config, i, m))  # noqa: E731
        return self.add("text", tower, embed, ids, mask)

    def cascade(
        self,
        name: str,
        prefix: jax.Array,
        config: SamplerConfig,
        ways: dict[str, tuple[int, bool]],
        codec: VAEConfig,
    ) -> None:
        """The parts after the text; `ways` are steps and guidance of the diffusion."""
        asked = windows.make_controls(prefix, [SamplingSettings(temperature=1.0)])
        keys, language = windows.item_keys(asked), fresh(lambda key: lm.init(config.lm, key))
        read = 4 * sum(count(language[part]) for part in ("blocks", "head", "group") if part in language)
        tokens, latents = None, None
        for part, guided in ((f"{name}LM", False), (f"{name}LM, guided", True)):
            draw = partial(_draw, replace(config, lm_guided=guided), keys)
            tokens = self.add(
                part, language, draw, asked, read=read * config.tokens / config.lm.tokens_per_pass
            )
        network = fresh(lambda key: denoiser.init(config.dpd, key))
        for way, (steps, guided) in ways.items():
            denoise = partial(_denoise, replace(config, steps=steps, guided=guided), keys)
            latents = self.add(f"{name}diffusion, {way}", network, denoise, asked, tokens)
        self.add(
            f"{name}decoder",
            fresh(lambda key: vae.init(codec, key)),
            lambda p, z: vae.decode(p, codec, z),
            latents,
        )


def fresh(init: Callable[[jax.Array], Any]) -> Any:
    """Random weights."""
    return jax.block_until_ready(jax.jit(init)(jax.random.key(0)))


def _draw(config: SamplerConfig, keys: jax.Array, params: Any, asked: Controls) -> jax.Array:
    return windows.prefix_to_tokens(params, config, asked, keys)


def _denoise(
    config: SamplerConfig, keys: jax.Array, params: Any, asked: Controls, tokens: jax.Array
) -> jax.Array:
    return windows.tokens_to_latents(params, config, asked, tokens, keys)


def peer(python: str) -> dict[str, Any]:
    """One timed run of MusicGen-small in a process of its own."""
    script = [python, str(Path(__file__).with_name("musicgen_small.py"))]
    done = subprocess.run(
        script, check=True, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    return json.loads(done.stdout.splitlines()[-1])


def report(found: dict[str, Part], rates: str, theirs: dict[str, Any] | None) -> str:
    """The page: parts beside their floors, clips beside the peer's."""
    lines = [f"{rates}\n", "| part | seconds | floor | share of the floor |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {name} | {p.seconds:.2f} | {p.floor:.2f} | {p.floor / p.seconds:.0%} |"
        for name, p in found.items()
    ]
    peer_seconds = theirs["seconds"][0] if theirs else None
    lines += ["", "| 10 s of audio | seconds | x real time | x MusicGen-small |", "| --- | --- | --- | --- |"]
    for name, parts in WAYS.items():
        total = sum(found[part].seconds for part in ("text", *parts))
        times = f"{peer_seconds / total:.2f}" if peer_seconds else ""
        lines.append(f"| {name} | {total:.1f} | {SECONDS / total:.3f} | {times} |")
    if theirs and peer_seconds:
        size = f"{theirs['decoder_parameters'] / 1e6:.1f} M decoder, torch {theirs['torch']}"
        lines.append(f"| MusicGen-small ({size}) | {peer_seconds:.1f} | {SECONDS / peer_seconds:.3f} | 1 |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints, writes."""
    arguments = tyro.cli(Arguments, description=__doc__)
    bench, theirs = Bench(), None
    prefix = bench.text()
    steps = {"5 guided steps": (5, True), "5 steps": (5, False), "1 step": (1, False)}
    bench.cascade("", prefix, PAPER, steps, vae.PAPER)
    bench.cascade("modern ", prefix, MODERN, {"4 steps": (4, False), "2 steps": (2, False)}, vae.MODERN)
    for _ in range(arguments.rounds):
        for name, part in bench.parts.items():
            part.seconds = min(part.seconds, best(part.run, 1))
            print(f"{name}: {part.seconds:.2f} s, floor {part.floor:.2f} s", flush=True)
        if arguments.peer_python:
            now = peer(arguments.peer_python)
            theirs = min(theirs or now, now, key=lambda result: result["seconds"])
            print(f"MusicGen-small: {theirs['seconds'][0]:.1f} s", flush=True)
    machine, now = f"{os.cpu_count()} cores, {platform.machine()}, jax {jax.__version__}", memory_rate()
    memory = f"memory {bench.memory:.1f} GB/s before (as in the floors), {now:.1f} after"
    rates = f"{machine}: {memory}, matrix product {bench.matmul:.0f} GFLOP/s."
    page = report(bench.parts, rates, theirs)
    arguments.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
