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
from collections.abc import Callable
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


def programs(config: Any, decoder: Any) -> dict[str, Callable[..., Any]]:
    """Programs of a batch by name: "draws", "tokens" from controls, and "waveform" from controls and tokens."""
    import jax

    from melody_jax.sampling import windows
    from melody_jax.sampling.item_controls import item_keys

    def draws(_: Any, controls: Any) -> tuple[jax.Array, jax.Array]:
        keys = item_keys(controls)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (config.tokens, 64)))(keys)
        return windows.initial_noise(keys, config.dpd.frames, config.dpd.latent_dim), noise

    def tokens(params: Any, controls: Any) -> jax.Array:
        return windows.prefix_to_tokens(params["lm"], config, controls, item_keys(controls))

    def waveform(params: Any, controls: Any, tokens: jax.Array) -> jax.Array:
        keys = item_keys(controls)
        latents = windows.tokens_to_latents(params["dpd"], config, controls, tokens, keys)
        return windows.latents_to_wave(params["vae"], decoder, latents, np.int32(0))

    return {"draws": draws, "tokens": tokens, "waveform": waveform}


def compare(args: Arguments) -> dict[str, float]:
    """Differences of items in a batch, and in a batch over devices, from the same items alone."""
    import jax

    from melody_jax.sampling import windows
    from melody_jax.sharding import make_mesh

    melody, requests = load_requests(args)
    (batch,) = melody.plan(requests)
    encoded = melody.prompt_encoder.encode_requests(requests)
    controls = jax.tree.map(np.asarray, melody.controls_at(batch, encoded)([0.0] * len(requests)))
    mesh = make_mesh((-1, 1, 1), jax.devices())
    replicated = jax.device_put(melody.params, jax.NamedSharding(mesh, jax.P()))
    names = (f"batch {args.batch}", f"batch {args.batch} on {len(jax.devices())} devices")
    ways = {"alone": (1, None), names[0]: (args.batch, None), names[1]: (args.batch, mesh)}
    functions = programs(batch.config, melody.configs["vae"])

    def outputs(program: str, count: int, *items: Any) -> list[Any]:
        """The program's outputs for the first `count` items, alone, in a batch, and over devices."""
        items = jax.tree.map(lambda leaf: leaf[:count], items)
        results = []
        for name, (size, device_mesh) in ways.items():
            placed = melody.params if device_mesh is None else replicated
            compiled = jax.jit(windows.per_device(functions[program], device_mesh))
            results.append(in_batches(partial(compiled, placed), f"{program}, {name}", size, *items))
        return results

    report: dict[str, float] = {}
    alone, *others = [digests(result) for result in outputs("draws", args.items, controls)]
    for name, other in zip(names, others, strict=True):
        report[f"bit-identical draws, {name}"] = float(np.mean(alone == other))
    alone, *others = outputs("tokens", args.items, controls)
    for name, other in zip(names, others, strict=True):
        report[f"equal tokens, {name}"] = float(np.mean(alone == other))
        report[f"items with equal tokens, {name}"] = float(np.mean((alone == other).all(axis=1)))
    alone, *others = outputs("waveform", args.waves, controls, alone)
    for name, other in zip(names, others, strict=True):
        report[f"largest difference of waveforms, {name}"] = float(np.abs(other - alone).max())
    return report


def digests(arrays: Any) -> np.ndarray:
    """Hashes of the items (first axis) of every array in a tree, (arrays, items)."""
    import jax

    rows = [[hashlib.sha256(item.tobytes()).hexdigest() for item in leaf] for leaf in jax.tree.leaves(arrays)]
    return np.asarray(rows)


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
