"""Streams and long pieces: what they cost, and whether one hears where they are joined.

    python benchmarks/streaming.py --short 30 --long 600

Measured warm, each piece in a process of its own: seconds until the first sound, real-time factor, processor time, and
memory (the most that the process holds while the piece is made) at both lengths, streamed to a file and made whole. The
first window is much music for one pass of the networks, each chunk after it little, so time is compared by the pass.
Then the joins of the long stream, between chunks of the diffusion and between stretches of the decoder: the energy of
the first difference over the 32 samples around each, among the same at 20,000 places elsewhere. Linux only. About five
minutes on two idle cores.
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
"""Samples to either side of a join."""
APART = 2_400
"""Samples from a join from which on a place counts as elsewhere."""


@dataclass(frozen=True)
class Arguments:
    """Measures streams and long pieces."""

    model: str = "mini"
    """Name of the release."""
    folder: Path | None = None
    """Where releases are; the package's own if left out."""
    short: float = 30.0
    """Seconds of the short piece."""
    long: float = 600.0
    """Seconds of the long piece."""
    prompt: str = "driving techno at 130 bpm"
    """Of both."""


def resident(which: str) -> float:
    """MB of this process as Linux counts them: VmRSS now, VmHWM at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1e3


def make(
    args: Arguments, seconds: float, target: Path | None
) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Figures of a warm piece, streamed to `target` as float32 if there is one; and where a stream's joins are."""
    from melody_jax import load
    from melody_jax.runtime import enable_compile_cache

    enable_compile_cache()
    melody = load(args.model, folder=args.folder)
    warm = melody.window_seconds + 2 * melody.chunk_seconds
    for _ in (
        melody.stream(args.prompt, seconds=warm) if target else melody.generate(args.prompt, seconds=warm)
    ):
        pass
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    started, worked, first, ends = time.perf_counter(), time.process_time(), 0.0, [0]
    if target is None:
        (piece,) = melody.generate(args.prompt, seconds=seconds)
        assert len(piece) == round(seconds * melody.sample_rate)
    else:
        with open(target, "wb") as file:
            for stretch in melody.stream(args.prompt, seconds=seconds):
                first = first or time.perf_counter() - started
                file.write(stretch.tobytes())
                ends.append(ends[-1] + len(stretch))
    took, worked = time.perf_counter() - started, time.process_time() - worked
    figures = {"seconds to the first sound": first} if target else {}
    figures |= {
        "real-time factor": seconds / took,
        "processor seconds": worked,
        "passes": 1 + melody.chunks(seconds),
    }
    figures |= {"MB before": before, "MB at most": resident("VmHWM")}
    chunk = round(melody.chunk_seconds * melody.sample_rate)
    joins = {"chunks": list(range(melody.window_samples, ends[-1], chunk)), "decoder": ends[1:-1]}
    return figures, joins


def energies(wave: np.ndarray, places: np.ndarray) -> np.ndarray:
    """dB of the mean squared first difference around each place."""
    total = np.cumsum(np.pad(np.diff(wave.astype(np.float64)) ** 2, (1, 0)))
    return 10 * np.log10((total[places + AROUND] - total[places - AROUND]) / (2 * AROUND) + 1e-12)


def report_joins(wave: np.ndarray, joins: dict[str, list[int]]) -> None:
    every = np.sort(np.concatenate([np.asarray(places) for places in joins.values()]))
    places = np.random.default_rng(0).integers(APART, len(wave) - APART, 20_000)
    nearest = np.abs(every[:, None] - places).min(axis=0)
    elsewhere = np.sort(energies(wave, places[nearest >= APART]))
    for name, at in joins.items():
        found = energies(wave, np.asarray(at))
        ranks = np.searchsorted(elsewhere, found) / len(elsewhere)
        print(
            f"{len(at)} joins of {name}: mean rank {ranks.mean():.2f} (0.5), above the 95th percentile "
            f"{np.mean(ranks > 0.95):.1%} (5 %), above the 99th {np.mean(ranks > 0.99):.1%} (1 %); "
            f"loudest {found.max():.1f} dB, elsewhere {elsewhere[-1]:.1f} dB"
        )


def main() -> None:
    args = tyro.cli(Arguments)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "stream.raw"
        for how, path in (("streamed", target), ("whole", None)):
            both, joins = [], {}
            for seconds in (1.0, args.short, args.long):  # the first compiles, which takes memory too
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    figures, joins = process.submit(make, args, seconds, path).result()
                if seconds == 1.0:
                    continue
                both.append(figures)
                print(
                    f"{seconds:g} s, {how}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()),
                    flush=True,
                )
            short, long = both
            memory = long["MB at most"] / short["MB at most"]
            passes = [figures["processor seconds"] / figures["passes"] for figures in both]
            print(
                f"{how}: {memory:.3f} times the memory, {passes[1] / passes[0]:.3f} times the processor time a pass"
            )
            if path:
                report_joins(np.fromfile(path, np.float32), joins)


if __name__ == "__main__":
    main()
