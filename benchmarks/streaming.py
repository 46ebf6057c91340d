"""Cost of streams and long pieces, and audibility of their joins.

    python benchmarks/streaming.py --short 30 --long 600

Every piece is made in a separate process after a warm-up: seconds to the first sound, real-time factor, CPU
time and peak memory at both lengths, streamed to a file and made at once. The first window gives much music
per network pass and later chunks give less, so time is compared per pass. Then the joins of the long stream,
between chunks of the diffusion and between blocks of the decoder: the energy of the first difference over the
32 samples around each join, ranked among 20,000 other places. Linux only. Takes about five minutes on two
idle cores.
"""

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import tyro

AROUND = 16
"""Samples on either side of a join."""
FAR = 2_400
"""Least distance between a join and the other places, samples."""


@dataclass(frozen=True)
class Arguments:
    """Measures streams and long pieces."""

    model: str = "mini"
    """Name of the release."""
    folder: Path | None = None
    """Folder of releases; default: the packaged ones."""
    short: float = 30.0
    """Seconds of the short piece."""
    long: float = 600.0
    """Seconds of the long piece."""
    prompt: str = "driving techno at 130 bpm"
    """Prompt of both pieces."""


def resident(field: str) -> float:
    """Memory of this process in MB as Linux reports it: VmRSS now, VmHWM at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1e3


def make(
    args: Arguments, seconds: float, target: Path | None
) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Metrics of a piece, streamed to `target` as float32 if given, and the positions of the joins of a
    stream."""
    from melody_jax import load
    from melody_jax.runtime import enable_compile_cache
    from melody_jax.sampling.plan import chunk_count

    enable_compile_cache()
    melody = load(args.model, folder=args.folder)
    warm = melody.window_seconds + 2 * melody.chunk_seconds
    for _ in (
        melody.stream(args.prompt, seconds=warm) if target else melody.generate(args.prompt, seconds=warm)
    ):
        pass
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    start = time.perf_counter()
    cpu_start = time.process_time()
    first = 0.0
    ends = [0]
    if target is None:
        (piece,) = melody.generate(args.prompt, seconds=seconds)
        assert len(piece) == round(seconds * melody.sample_rate)
    else:
        with open(target, "wb") as file:
            for stretch in melody.stream(args.prompt, seconds=seconds):
                first = first or time.perf_counter() - start
                file.write(stretch.tobytes())
                ends.append(ends[-1] + len(stretch))
    elapsed = time.perf_counter() - start
    metrics = {"seconds to the first sound": first} if target else {}
    metrics |= {
        "real-time factor": seconds / elapsed,
        "CPU seconds": time.process_time() - cpu_start,
        "passes": 1 + chunk_count(seconds, melody.configs),
    }
    metrics |= {"MB before": before, "peak MB": resident("VmHWM")}
    chunk = round(melody.chunk_seconds * melody.sample_rate)
    joins = {"chunks": list(range(melody.window_samples, ends[-1], chunk)), "decoder": ends[1:-1]}
    return metrics, joins


def energies(wave: np.ndarray, places: np.ndarray) -> np.ndarray:
    """dB of the mean squared first difference around each place."""
    total = np.cumsum(np.pad(np.diff(wave.astype(np.float64)) ** 2, (1, 0)))
    return 10 * np.log10((total[places + AROUND] - total[places - AROUND]) / (2 * AROUND) + 1e-12)


def report_joins(wave: np.ndarray, joins: dict[str, list[int]]) -> None:
    every = np.sort(np.concatenate([np.asarray(places) for places in joins.values()]))
    places = np.random.default_rng(0).integers(FAR, len(wave) - FAR, 20_000)
    nearest = np.abs(every[:, None] - places).min(axis=0)
    elsewhere = np.sort(energies(wave, places[nearest >= FAR]))
    for name, positions in joins.items():
        levels = energies(wave, np.asarray(positions))
        ranks = np.searchsorted(elsewhere, levels) / len(elsewhere)
        print(
            f"{len(positions)} joins of {name}: mean rank {ranks.mean():.2f} (0.5), above the 95th percentile "
            f"{np.mean(ranks > 0.95):.1%} (5 %), above the 99th {np.mean(ranks > 0.99):.1%} (1 %); "
            f"loudest {levels.max():.1f} dB, elsewhere {elsewhere[-1]:.1f} dB"
        )


def main() -> None:
    args = tyro.cli(Arguments)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "stream.raw"
        for how, path in (("streamed", target), ("at once", None)):
            results = []
            joins = {}
            for seconds in (1.0, args.short, args.long):  # the first one fills the compilation cache
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    metrics, joins = process.submit(make, args, seconds, path).result()
                if seconds == 1.0:
                    continue
                results.append(metrics)
                print(
                    f"{seconds:g} s, {how}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()),
                    flush=True,
                )
            short, long = results
            memory = long["peak MB"] / short["peak MB"]
            passes = [metrics["CPU seconds"] / metrics["passes"] for metrics in results]
            print(
                f"{how}: {memory:.3f} times the memory, {passes[1] / passes[0]:.3f} times the CPU time per pass"
            )
            if path:
                report_joins(np.fromfile(path, np.float32), joins)


if __name__ == "__main__":
    main()
