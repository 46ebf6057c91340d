"""Does a clip depend on its batch? And how many clips per second does a batch make?

    python benchmarks/batch_invariance.py --items 1000 --waves 64

Every item is made alone, in shuffled batches with a padded last one, and in such batches over 8 devices
(virtual ones on a CPU). The benchmark compares its draws (bits), its semantic tokens and, from the tokens it
has alone, its waveform. It also compares the files of two processes that make the same clip. Takes about 15
minutes on two cores.
"""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Arguments:
    """Size of the benchmark."""

    model: str = "mini"
    """Name of the release."""
    folder: Path | None = None
    """Folder of releases; default: the packaged ones."""
    items: int = 1000
    """Clips whose draws and tokens are compared."""
    waves: int = 64
    """Clips whose waveforms are compared."""
    batch: int = 16
    """Clips per batch."""
    devices: int = 8
    """Devices of a sharded batch."""


def load_requests(args: Arguments) -> tuple[Any, list[Any]]:
    """The model, and requests that cycle through the committed prompts with seeds 0, 1, ..."""
    from melody_jax import load
    from melody_jax.runtime import enable_compile_cache
    from melody_jax.sampling.request import Request

    enable_compile_cache()
    lines = (ROOT / "melody_jax" / "assets" / "prompts.jsonl").read_text().splitlines()
    texts = itertools.islice(itertools.cycle(json.loads(line)["text"] for line in lines), args.items)
    return load(args.model, folder=args.folder), [
        Request(prompt=text, seed=i) for i, text in enumerate(texts)
    ]


def in_batches(function: Any, name: str, size: int, *items: Any) -> Any:
    """Applies `function` to items (trees of arrays (N, ...)) in batches of `size`, shuffled if larger than
    one."""
    import jax

    count = len(jax.tree.leaves(items)[0])
    order = np.random.default_rng(0).permutation(count) if size > 1 else np.arange(count)
    outputs = []
    for first in tqdm(range(0, count, size), desc=name):
        rows = np.resize(order[first : first + size], size)
        outputs.append(
            jax.tree.map(np.asarray, function(*jax.tree.map(lambda leaf, rows=rows: leaf[rows], items)))
        )
    inverse = np.argsort(order)
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count][inverse], *outputs)


def compare(args: Arguments) -> dict[str, float]:
    """Differences between alone, in a batch, and in a batch over devices."""
    import jax

    from melody_jax.sampling import windows
    from melody_jax.sharding import make_mesh

    melody, requests = load_requests(args)
    vae = melody.configs["vae"]
    (batch,) = melody.plan(requests)
    config = batch.config
    controls = jax.tree.map(np.asarray, melody.controls_at(batch)([0.0] * len(requests)))
    mesh = make_mesh((-1, 1, 1), jax.devices())
    replicated = jax.device_put(melody.params, jax.NamedSharding(mesh, jax.P()))
    ways = {"alone": (1, None), f"batch {args.batch}": (args.batch, None)}
    ways[f"batch {args.batch} on {len(jax.devices())} devices"] = (args.batch, mesh)

    def draws(_: Any, controls: Any) -> tuple[jax.Array, jax.Array]:
        keys = windows.item_keys(controls)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (config.tokens, 64)))(keys)
        return windows.initial_noise(keys, config.dpd.frames, config.dpd.latent_dim), noise

    def tokens(params: Any, controls: Any) -> jax.Array:
        return windows.prefix_to_tokens(params["lm"], config, controls, windows.item_keys(controls))

    def sound(params: Any, controls: Any, tokens: jax.Array) -> jax.Array:
        keys = windows.item_keys(controls)
        latents = windows.tokens_to_latents(params["dpd"], config, controls, tokens, keys)
        return windows.latents_to_wave(params["vae"], vae, latents, np.int32(0))

    def outputs(function: Any, count: int, *items: Any) -> list[Any]:
        results = []
        for name, (size, device_mesh) in ways.items():
            placed = melody.params if device_mesh is None else replicated
            compiled = jax.jit(windows.per_device(function, device_mesh))
            items = jax.tree.map(lambda leaf: leaf[:count], items)
            results.append(
                in_batches(partial(compiled, placed), f"{function.__name__}, {name}", size, *items)
            )
        return results

    def digests(results: list[Any]) -> list[list[str]]:
        return [
            [hashlib.sha256(item.tobytes()).hexdigest() for item in leaf] for leaf in jax.tree.leaves(results)
        ]

    report: dict[str, float] = {}
    alone, *others = [digests(list(result)) for result in outputs(draws, args.items, controls)]
    for name, other in zip(list(ways)[1:], others, strict=True):
        is_equal = [
            a == b
            for leaf, other_leaf in zip(alone, other, strict=True)
            for a, b in zip(leaf, other_leaf, strict=True)
        ]
        report[f"bit-identical draws, {name}"] = float(np.mean(is_equal))
    alone, *others = outputs(tokens, args.items, controls)
    for name, other in zip(list(ways)[1:], others, strict=True):
        report[f"equal tokens, {name}"] = float(np.mean(alone == other))
        report[f"items with equal tokens, {name}"] = float(np.mean((alone == other).all(axis=1)))
    alone, *others = outputs(sound, args.waves, controls, alone)
    for name, other in zip(list(ways)[1:], others, strict=True):
        report[f"largest difference of waveforms, {name}"] = float(np.abs(other - alone).max())
    return report


def clips_per_second(args: Arguments) -> dict[str, float]:
    """Throughput of a warm batch of 10 s clips including the text encoder; the best of three."""
    melody, requests = load_requests(args)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        melody.run(requests[: args.batch])
        best = min(best, time.perf_counter() - start)
    return {f"10 s clips per second, batch {args.batch}": args.batch / best}


def run_twice(args: Arguments) -> dict[str, float]:
    """Whether two processes write identical files."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.wav" for i in range(2)]
        for file in files:
            command = [sys.executable, str(ROOT / "sample.py"), "slow sad cello", "--out", str(file)]
            command += ["--model", args.model, *(["--folder", str(args.folder)] if args.folder else [])]
            subprocess.run(command, check=True, capture_output=True)
        return {"two processes write identical bytes": float(files[0].read_bytes() == files[1].read_bytes())}


def main() -> None:
    args = tyro.cli(Arguments)
    for part, devices in ((clips_per_second, 1), (run_twice, 1), (compare, args.devices)):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        before = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = flags
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            for name, value in process.submit(part, args).result().items():
                print(f"{name}: {value:.6g}", flush=True)
        os.environ["XLA_FLAGS"] = before


if __name__ == "__main__":
    main()
