"""What this machine's device does: a training step of every stage and the sampler, relative to its peak, and memory.

    python benchmarks/device.py                     # the paper's size; writes device.md
    python benchmarks/device.py --size small --dtype float32 --remat none --only lm dpd vae mulan tokenizer

One device, random weights and batches. FLOPs count the matrix products and convolutions of the traced program
(`melody_jax/flops.py`); in training they include optimiser and discriminators, and what is recomputed. The peak is the
published one for TPUs, otherwise that of a large matrix product, measured before and after each row; the larger counts.
Memory is the compiler's plan. A batch that does not fit is halved until it does. The page names the rows that failed,
and those that were left out because they would have begun after `--minutes`.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from melody_jax.runtime import tune_allocator

if __name__ == "__main__":
    tune_allocator()

import jax
import numpy as np
import tyro
from jax.sharding import Mesh

from melody_jax.audio_format import TOKEN_RATE
from melody_jax.composer import facts
from melody_jax.config import TrainConfig, load_config, with_fields
from melody_jax.errors import first_line
from melody_jax.files import write_bytes
from melody_jax.flops import matmul_cost
from melody_jax.models.functional import Remat
from melody_jax.sampling.windows import SamplerConfig
from melody_jax.scale.programs import example, trace_sampler
from melody_jax.sharding import make_mesh, sharded_init
from melody_jax.training.loop import make_step
from melody_jax.training.state import create_state, state_roles
from melody_jax.training.utilisation import TPUS, measured_flops, peak_flops

STAGES = ("lm", "dpd", "mulan", "tokenizer", "vae")
BATCHES = (1, 16, 64, 256)
"""Clips that the sampler makes at a time."""
ITEMS: dict[str, dict[str, int]] = {
    "tiny": dict.fromkeys(STAGES, 2),
    "small": {"lm": 8, "dpd": 4, "vae": 16, "mulan": 8, "tokenizer": 8},
    "paper": {"lm": 64, "dpd": 8, "vae": 8, "mulan": 16, "tokenizer": 16},
}
"""Size -> stage -> items of a training step."""
TRAINING = (
    "stage",
    "items",
    "TFLOP",
    "compiling, s",
    "step, s",
    "TFLOP/s",
    "peak, TFLOP/s",
    "share",
    "memory, GB",
)
SAMPLING = (
    "clips", "seconds of a clip", "TFLOP", "compiling, s", "batch, s", "times real time", "TFLOP/s", "share",
    "memory, GB",
)  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Measures the first device of this machine."""

    size: Literal["tiny", "small", "paper"] = "paper"
    """Size of the networks."""
    only: tuple[Literal["lm", "dpd", "mulan", "tokenizer", "vae", "sampler"], ...] = (*STAGES, "sampler")
    """Stages whose training step is measured, and "sampler"."""
    batches: tuple[int, ...] = BATCHES
    """Clips that the sampler makes at a time."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute dtype; weights are float32."""
    remat: Remat = "blocks"
    """What the backward pass recomputes, in the networks that can."""
    runs: int = 5
    """Timed runs of each program, after one that is not; the fastest counts."""
    minutes: float = 10.0
    """Minutes after which no further row is begun."""
    trace: str = ""
    """Folder for a profile of one more run of each program; empty: none."""
    out: Path = Path("device.md")
    """File of the tables."""

    def __post_init__(self) -> None:
        if min(self.runs, *self.batches, *([] if self.only else [0])) < 1:
            raise SystemExit(
                f"runs {self.runs}, batches {self.batches}, only {self.only}: at least one of each"
            )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One program at the largest batch that fits."""

    items: int
    """Items of the batch."""
    flops: float
    """FLOPs of its matrix products and convolutions."""
    compiling: float
    """Seconds of compilation."""
    seconds: float
    """Seconds of its fastest run."""
    memory: float
    """Bytes that the compiler plans."""


Program = Callable[[], Any]
"""Runs the program once."""


def noise(shapes: Any) -> Any:
    """Random arrays of the given shapes: ids 0 and 1, and quiet noise."""
    rng = np.random.default_rng(0)

    def leaf(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if np.issubdtype(shape.dtype, np.integer):
            return rng.integers(0, 2, shape.shape).astype(shape.dtype)
        return (0.1 * rng.standard_normal(shape.shape, np.float32)).astype(shape.dtype)

    return jax.tree.map(leaf, shapes)


def random_batch(config: TrainConfig) -> dict[str, Any]:
    """A training batch of noise; texts have their full length, and all clips a tempo of 120 bpm."""
    batch = noise(example(config))
    if "text_mask" in batch:
        batch["text_mask"] = np.ones_like(batch["text_mask"])
    if "facts" in batch:
        labels = {name: np.asarray(value) for name, value in facts.labels({"tempo_bpm": 120.0}).items()}
        batch["facts"] = {name: np.broadcast_to(x, batch["facts"][name].shape) for name, x in labels.items()}
    return batch


def device_mesh() -> Mesh:
    """A mesh of the first device."""
    return make_mesh((1, 1, 1), jax.local_devices()[:1])


def stage_config(name: str, arguments: Arguments, items: int) -> TrainConfig:
    """The config of a stage with the dtype and remat of the command."""
    config = load_config(f"{name}_{arguments.size}")
    model = with_fields(config.stage.model, dtype=arguments.dtype, remat=arguments.remat)
    data = replace(config.data, batch_size=items)
    changes = (
        {"adversarial_start": 0} if name == "vae" else {}
    )  # the discriminators' work counts, so they must run
    return replace(config, stage=replace(config.stage, model=model, **changes), data=data)


def training_step(name: str, arguments: Arguments, items: int) -> tuple[Any, Callable[[Any], Program]]:
    """The traced training step of a stage; a function from its compiled program to one that runs it."""
    config = stage_config(name, arguments, items)
    state = sharded_init(
        lambda key: create_state(config, key), state_roles(config), jax.random.key(0), device_mesh()
    )
    batch = jax.device_put(random_batch(config), jax.local_devices()[0])

    def bound(compiled: Any) -> Program:
        place = [state]

        def run() -> jax.Array:
            place[0], metrics = compiled(place[0], batch)
            return metrics["loss"]

        return run

    return make_step(config, state).trace(state, batch), bound


def sampler(arguments: Arguments, items: int) -> tuple[Any, Callable[[Any], Program]]:
    """As `training_step`, of text to waveform: both networks guided, five steps of diffusion."""

    def model(name: str) -> Any:
        return with_fields(load_config(f"{name}_{arguments.size}").stage.model, dtype=arguments.dtype)

    config = SamplerConfig(lm=model("lm"), dpd=model("dpd"), lm_guided=True)
    traced = trace_sampler(config, model("mulan"), model("vae"), items, device_mesh())
    shapes = [
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        for tree in traced.in_avals[0]
    ]
    inputs = jax.device_put([noise(tree) for tree in shapes], jax.local_devices()[0])
    return traced, lambda compiled: lambda: compiled(*inputs)


def measure(
    build: Callable[[int], tuple[Any, Callable[[Any], Program]]], items: int, arguments: Arguments, name: str
) -> Measured:
    """Times a program at the largest batch that fits, up to `items`."""
    while True:
        try:
            return timed(*build(items), items, arguments, name)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or items == 1:
                raise
            items //= 2
            print(f"{name}: does not fit, trying {items} items", flush=True)


def timed(
    traced: Any, bound: Callable[[Any], Program], items: int, arguments: Arguments, name: str
) -> Measured:
    """Compiles and times a traced program."""
    start = time.perf_counter()
    compiled = traced.lower().compile()
    compiling = time.perf_counter() - start
    run = bound(compiled)
    seconds = list(itertools.islice(durations(run), arguments.runs + 1))[1:]
    if arguments.trace:
        with jax.profiler.trace(f"{arguments.trace}/{name}"):
            jax.block_until_ready(run())
    sizes = compiled.memory_analysis()
    planned = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return Measured(
        items=items,
        flops=matmul_cost(traced.jaxpr)[0],
        compiling=compiling,
        seconds=min(seconds),
        memory=planned - sizes.alias_size_in_bytes,
    )


def durations(run: Program) -> Iterator[float]:
    """Seconds of one run after another. Raises `ValueError` if a result is not finite."""
    while True:
        start = time.perf_counter()
        result = jax.block_until_ready(run())
        yield time.perf_counter() - start
        if not np.isfinite(np.asarray(result, np.float32)).all():
            raise ValueError("the program's result is not finite")


def peak() -> float:
    """FLOP/s of the device: published, or measured now."""
    return peak_flops() if jax.local_devices()[0].device_kind in TPUS else measured_flops()


def training_row(name: str, m: Measured, peak: float) -> list[str]:
    """Cells of the table of training steps; `peak`: FLOP/s of the device."""
    rate = m.flops / m.seconds
    return [
        name, f"{m.items}", f"{m.flops / 1e12:.3g}", f"{m.compiling:.0f}", f"{m.seconds:.3f}", f"{rate / 1e12:.3g}",
        f"{peak / 1e12:.3g}", f"{rate / peak:.0%}", f"{m.memory / 1e9:.2f}",
    ]  # fmt: skip


def sampling_row(length: float, m: Measured, peak: float) -> list[str]:
    """Cells of the table of the sampler; `length`: seconds of a clip, `peak`: FLOP/s of the device."""
    rate = m.flops / m.seconds
    return [
        f"{m.items}", f"{length:.1f}", f"{m.flops / 1e12:.3g}", f"{m.compiling:.0f}", f"{m.seconds:.3f}",
        f"{m.items * length / m.seconds:.1f}", f"{rate / 1e12:.3g}", f"{rate / peak:.0%}", f"{m.memory / 1e9:.2f}",
    ]  # fmt: skip


def clip_seconds(arguments: Arguments) -> float:
    """Seconds of one window of the sampler."""
    dpd = load_config(f"dpd_{arguments.size}").stage.model
    return dpd.frames / dpd.frames_per_token / TOKEN_RATE


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (list(head), ["---"] * len(head), *rows))


@dataclass
class Report:
    """What has been measured so far."""

    training: list[list[str]] = field(default_factory=list)
    """Rows of the table of training steps."""
    sampling: list[list[str]] = field(default_factory=list)
    """Rows of the table of the sampler."""
    failed: list[str] = field(default_factory=list)
    """Rows that failed, with the reason."""
    left_out: list[str] = field(default_factory=list)
    """Rows for which there was no time."""

    def page(self, arguments: Arguments) -> str:
        """The report as Markdown."""
        device = jax.local_devices()[0]
        how = f"size `{arguments.size}`, {arguments.dtype}, remat {arguments.remat}"
        parts = [f"{device.device_kind} ({device.platform}), one device, jax {jax.__version__}, {how}.\n"]
        if self.training:
            parts.append(f"Training:\n\n{table(TRAINING, self.training)}")
        if self.sampling:
            parts.append(
                f"Sampling, text to waveform, five guided steps:\n\n{table(SAMPLING, self.sampling)}"
            )
        if self.failed:
            parts.append("Failed:\n\n" + "".join(f"- {row}\n" for row in self.failed))
        if self.left_out:
            parts.append(f"Left out for lack of time: {', '.join(self.left_out)}.\n")
        return "\n".join(parts)


def add_row(report: Report, name: str, batch: int, arguments: Arguments) -> None:
    """Measures one program and adds its row to the report, or why it failed."""
    before = peak()
    label = f"{name} {batch or ''}".strip()
    is_sampler = name == "sampler"
    items = batch if is_sampler else ITEMS[arguments.size][name]
    try:
        if is_sampler:
            measured = measure(partial(sampler, arguments), items, arguments, label)
        else:
            measured = measure(partial(training_step, name, arguments), items, arguments, label)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        report.failed.append(f"{label}: {first_line(error)}")
        return
    fastest = max(before, peak())
    if is_sampler:
        report.sampling.append(sampling_row(clip_seconds(arguments), measured, fastest))
    else:
        report.training.append(training_row(name, measured, fastest))


def main() -> None:
    """Measures, prints and writes the tables."""
    arguments = tyro.cli(Arguments, description=__doc__)
    start = time.monotonic()
    report = Report()
    programs = [(name, 0) for name in STAGES if name in arguments.only]
    programs += [("sampler", batch) for batch in arguments.batches if "sampler" in arguments.only]
    for name, batch in programs:
        if time.monotonic() - start > 60 * arguments.minutes:
            report.left_out.append(f"{name} {batch or ''}".strip())
        else:
            add_row(report, name, batch, arguments)
        write_bytes(arguments.out, report.page(arguments).encode())
        print(f"{name} {batch or ''}: {time.monotonic() - start:.0f} s so far", flush=True)
    print(report.page(arguments))


if __name__ == "__main__":
    main()
