"""The sampler at the paper's size and as `modern` (48 kHz stereo), compared with the machine's limits and with MusicGen
and Stable Audio Open Small.

    python benchmarks/peers.py --peer_python other/bin/python  # an environment with torch, transformers and diffusers
    python benchmarks/peers.py --peer_python ""                # without the peers

Makes one clip of 10 s with random weights; writes docs/evaluation/peers.md. Each part has a lower bound on
its time: for the language model, the bytes it reads per token over the memory bandwidth; for the others,
their FLOPs over the rate of a large matrix product. Everything is compiled before it is timed. Rounds of our
parts and of the peers alternate; the best time of each counts. The machine must be idle otherwise.
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
from melody_jax.models import denoiser, dpd, lm, lm_config, mulan, vae
from melody_jax.models.functional import count
from melody_jax.models.platform import matvec
from melody_jax.models.vae import VAEConfig
from melody_jax.sampling import windows
from melody_jax.sampling.item_controls import Controls, item_keys, make_controls
from melody_jax.sampling.prompts import targets_to_prefix, text_targets
from melody_jax.sampling.settings import SamplingSettings
from melody_jax.sampling.windows import SamplerConfig

ROOT = Path(__file__).parents[1]
SECONDS = 10.0
PAPER = SamplerConfig(lm=lm_config.PAPER, dpd=dpd.PAPER)
MODERN = SamplerConfig(lm=lm_config.MODERN, dpd=replace(dpd.MODERN, guidance_range=(1.0, 4.0)))
WAYS = {
    "paper's size, 5 guided steps": ("LM, guided", "diffusion, 5 guided steps", "decoder"),
    "paper's size, 5 steps": ("LM, guided", "diffusion, 5 steps", "decoder"),
    "paper's size, 1 step": ("LM, guided", "diffusion, 1 step", "decoder"),
    "paper's size, 1 step, LM not guided": ("LM", "diffusion, 1 step", "decoder"),
    "modern, 48 kHz stereo, 4 steps": ("modern LM, guided", "modern diffusion, 4 steps", "modern decoder"),
    "modern, 48 kHz stereo, 2 steps": ("modern LM, guided", "modern diffusion, 2 steps", "modern decoder"),
    "modern, 48 kHz stereo, 2 steps, LM not guided": (
        "modern LM",
        "modern diffusion, 2 steps",
        "modern decoder",
    ),
}
"""Clip -> its parts, without the text encoder."""
PEERS = {
    "MusicGen-small, 32 kHz mono": ("musicgen.py",),
    "MusicGen-stereo-small, 32 kHz stereo": ("musicgen.py", "--stereo"),
    "Stable Audio Open Small's shape, 44.1 kHz stereo": ("stable_audio_small.py",),
}
"""Peer -> the script that times it, and its options."""
YARDSTICK = next(iter(PEERS))
"""The peer that the others are compared with."""


@dataclass(frozen=True)
class Arguments:
    """Times the sampler and its peers."""

    peer_python: str = sys.executable
    """Python with torch, transformers and diffusers; empty: without the peers."""
    rounds: int = 2
    """Alternating rounds of our parts and the peers."""
    out: Path = ROOT / "docs" / "evaluation" / "peers.md"
    """File of the tables."""


@dataclass
class Part:
    """A timed part."""

    run: Callable[[], Any]
    floor: float
    """Lower bound on its seconds."""
    seconds: float = float("inf")
    """Best time so far."""


def best(function: Callable[[], Any], runs: int) -> float:
    """The smallest time of some runs, seconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return min(times)


def memory_rate() -> float:
    """Memory bandwidth in GB/s over 1.6 GB: by matrix-vector products, or by sums with one thread per
    core."""
    matrices = [jnp.ones((4096, 4096)) for _ in range(24)]
    size = sum(m.nbytes for m in matrices) / 1e9
    row = jnp.ones((1, 4096))
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
    """Compiles parts, each with the output of the previous one, and stores them by name with their bounds."""

    def __init__(self) -> None:
        self.memory = memory_rate()
        self.matmul = matmul_rate()
        self.parts: dict[str, Part] = {}

    def add(
        self, name: str, params: Any, function: Callable[..., jax.Array], *inputs: Any, read: float = 0
    ) -> Any:
        """Adds a part and returns its output. `read`: bytes it must read, if they bound its time."""
        jitted = jax.jit(function)
        flops = 0 if read else matmul_cost(jax.make_jaxpr(function)(params, *inputs))[0]
        program = jitted.lower(params, *inputs).compile()
        floor = read / self.memory / 1e9 + flops / self.matmul / 1e9
        self.parts[name] = Part(lambda: program(params, *inputs), floor)
        return jax.block_until_ready(program(params, *inputs))

    def text(self) -> jax.Array:
        """Prefix tokens of a text of 16 word pieces."""
        config = mulan.PAPER
        width = config.embedding
        rng = np.random.default_rng(0)
        tower = fresh(lambda key: mulan.init(config, key)) | {"text_mean": jnp.zeros(width)}
        tower |= {"codebooks": jax.random.normal(jax.random.key(1), (config.levels, config.codes, width))}
        ids = rng.integers(1_000, 30_000, (1, 16)).astype(np.int32)
        mask = np.ones((1, 16), np.float32)
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
        controls = make_controls(prefix, [SamplingSettings(temperature=1.0)])
        keys = item_keys(controls)
        language = fresh(lambda key: lm.init(config.lm, key))
        read = 4 * sum(count(language[part]) for part in ("blocks", "head", "group") if part in language)
        tokens = None
        latents = None
        for part, guided in ((f"{name}LM", False), (f"{name}LM, guided", True)):
            draw = partial(_draw, replace(config, lm_guided=guided), keys)
            tokens = self.add(
                part, language, draw, controls, read=read * config.tokens / config.lm.tokens_per_pass
            )
        network = fresh(lambda key: denoiser.init(config.dpd, key))
        for way, (steps, guided) in ways.items():
            denoise = partial(_denoise, replace(config, steps=steps, guided=guided), keys)
            latents = self.add(f"{name}diffusion, {way}", network, denoise, controls, tokens)
        self.add(
            f"{name}decoder",
            fresh(lambda key: vae.init(codec, key)),
            lambda p, z: vae.decode(p, codec, z),
            latents,
        )


def fresh(init: Callable[[jax.Array], Any]) -> Any:
    """Random weights."""
    return jax.block_until_ready(jax.jit(init)(jax.random.key(0)))


def _draw(config: SamplerConfig, keys: jax.Array, params: Any, controls: Controls) -> jax.Array:
    return windows.prefix_to_tokens(params, config, controls, keys)


def _denoise(
    config: SamplerConfig, keys: jax.Array, params: Any, controls: Controls, tokens: jax.Array
) -> jax.Array:
    return windows.tokens_to_latents(params, config, controls, tokens, keys)


def time_peer(python: str, script: str, *options: str) -> dict[str, Any]:
    """One timed run of a peer in a separate process: its size, the seconds, and the seconds of audio."""
    command = [python, str(Path(__file__).with_name(script)), *options]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    return json.loads(done.stdout.splitlines()[-1])


def report(bench_parts: dict[str, Part], rates: str, peers: dict[str, dict[str, Any]]) -> str:
    """The page: parts with their bounds, and clips compared with the peers."""
    lines = [f"{rates}\n", "| part | seconds | lower bound, s | bound / time |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {name} | {p.seconds:.2f} | {p.floor:.2f} | {p.floor / p.seconds:.0%} |"
        for name, p in bench_parts.items()
    ]
    lines += [
        "",
        "| clip | seconds for 10 s | times real time | speed relative to MusicGen-small |",
        "| --- | --- | --- | --- |",
    ]
    totals = {
        name: sum(bench_parts[part].seconds for part in ("text", *parts)) for name, parts in WAYS.items()
    }
    totals |= {
        f"{name} ({peer['size']})": SECONDS * peer["seconds"] / peer["audio_seconds"]
        for name, peer in peers.items()
    }
    yardstick = next((total for name, total in totals.items() if name.startswith(YARDSTICK)), None)
    for name, total in totals.items():
        relative = f"{yardstick / total:.2f}" if yardstick else ""
        lines.append(f"| {name} | {total:.1f} | {SECONDS / total:.3f} | {relative} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints and writes the tables."""
    arguments = tyro.cli(Arguments, description=__doc__)
    bench = Bench()
    peers: dict[str, dict[str, Any]] = {}
    prefix = bench.text()
    steps = {"5 guided steps": (5, True), "5 steps": (5, False), "1 step": (1, False)}
    bench.cascade("", prefix, PAPER, steps, vae.PAPER)
    bench.cascade("modern ", prefix, MODERN, {"4 steps": (4, False), "2 steps": (2, False)}, vae.MODERN)
    for _ in range(arguments.rounds):
        for name, part in bench.parts.items():
            part.seconds = min(part.seconds, best(part.run, 1))
            print(f"{name}: {part.seconds:.2f} s, lower bound {part.floor:.2f} s", flush=True)
        for name, command in PEERS.items() if arguments.peer_python else ():
            latest = time_peer(arguments.peer_python, *command)
            peers[name] = min(peers.get(name, latest), latest, key=lambda result: result["seconds"])
            print(f"{name}: {peers[name]['seconds']:.1f} s", flush=True)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, jax {jax.__version__}"
    memory = f"memory {bench.memory:.1f} GB/s before (used for the bounds), {memory_rate():.1f} after"
    rates = f"{machine}: {memory}, matrix product {bench.matmul:.0f} GFLOP/s."
    page = report(bench.parts, rates, peers)
    arguments.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
