"""The cost of the paper's networks on TPUs: every training step and the sampler, compiled ahead of time.

    JAX_PLATFORMS=cpu python benchmarks/tpu_tables.py                         # all missing rows
    JAX_PLATFORMS=cpu python benchmarks/tpu_tables.py --only dpd --topologies v5e:4x4

Needs libtpu (`pip install -e ".[train,tpu]"`) but no TPU. A row takes one to ten minutes.
docs/evaluation/tpu.json keeps finished rows, and docs/evaluation/tpu.md is rewritten after each. To compile a
row again, delete it from the JSON.
"""

import dataclasses
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import tyro

from melody_jax.chips import CHIPS
from melody_jax.errors import UserError
from melody_jax.files import write_bytes, write_json
from melody_jax.models.functional import Remat
from melody_jax.scale.compile_tpu import CompileConfig, analyse, model_flops

ROOT = Path(__file__).parents[1]
PLACES: dict[str, tuple[str, int, int]] = {
    "v5e:4x4": ("v5e:4x4", 1, 16),
    "v5e:16x16": ("v5e:16x16", 1, 256),
    "v5p:4x4x4": ("v5p:4x4x4", 1, 64),
    "2 x v5e:16x16": ("v5e:16x16", 2, 512),
}
"""Name -> topology of a slice, number of slices, total number of chips."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one program is sharded."""

    fsdp: int = 1
    """Size of the fsdp axis; the data axis has the remaining chips."""
    items: dict[str, int]
    """Chip type -> items per chip."""
    remat: dict[str, Remat] = field(default_factory=dict)
    """Chip type -> what the backward pass recomputes, where that is not nothing."""
    quick: bool = True
    """Compile with little effort, where full effort takes more than ten minutes."""


PLANS = {
    "lm": Plan(fsdp=16, items={"v5e": 12, "v5p": 64}, remat={"v5e": "dots", "v5p": "dots"}, quick=False),
    "dpd": Plan(items={"v5e": 6, "v5p": 8}, remat={"v5e": "blocks"}),
    "mulan": Plan(items={"v5e": 4, "v5p": 16}),
    "tokenizer": Plan(items={"v5e": 4, "v5p": 16}),
    "vae": Plan(items={"v5e": 8, "v5p": 8}),
    "sampler": Plan(items={"v5e": 8, "v5p": 16}),
}
HEAD = (
    "program",
    "chips",
    "mesh",
    "items per step",
    "memory, GB",
    "TFLOP",
    "compute, ms",
    "HBM, lower bound, ms",
    "HBM, XLA's count, ms",
    "interconnect, ms",
    "network, ms",
    "largest bound",
    "largest possible MFU, %",
    "estimate: products + rest, ms",
    "estimated MFU, %",
    "collectives per step, received MB",
    "compile effort",
)


@dataclass(frozen=True)
class Arguments:
    """Compiles the networks of the paper's size for TPUs and writes the table."""

    only: tuple[str, ...] = tuple(PLANS)
    """Programs to compile."""
    topologies: tuple[str, ...] = tuple(PLACES)
    """Topologies."""
    out: Path = ROOT / "docs" / "evaluation" / "tpu.json"
    """File of finished rows; the table is written to the same folder."""


def plan(program: str, place: str) -> CompileConfig:
    """The settings of `melody compile-tpu`."""
    topology, slices, chips = PLACES[place]
    chip = topology.split(":")[0]
    program_plan = PLANS[program]
    config = program if program == "sampler" else str(ROOT / "configs" / f"{program}_paper.py")
    return CompileConfig(
        config=config,
        topology=topology,
        slices=slices,
        mesh=(chips // program_plan.fsdp, program_plan.fsdp, 1),
        batch_size=chips * program_plan.items[chip],
        remat=program_plan.remat.get(chip, "none"),
        quick=program_plan.quick,
    )


def compile_row(program: str, place: str) -> dict[str, Any]:
    """One finished row, or a row with the reason why the compiler refused the program."""
    config = plan(program, place)
    start = time.monotonic()
    row = {"mesh": config.mesh, "items": config.batch_size, "remat": config.remat, "quick": config.quick}
    try:
        report = analyse(config)
    except UserError as error:
        return row | {"refused": str(error)}
    flops = report.flops if config.remat == "none" else model_flops(config) / report.devices
    row |= dataclasses.asdict(report) | {"model_flops": flops, "estimate": report.estimate}
    return row | {"bound": report.roofline.bound, "seconds": round(time.monotonic() - start)}


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """The cells of a row."""
    program, place = name.split(" on ")
    start = [
        program + (", remat" if row["remat"] != "none" else ""),
        place,
        " x ".join(map(str, row["mesh"])),
        str(row["items"]),
    ]
    effort = "quick" if row["quick"] else "full"
    if "refused" in row:
        return [*start, *["-"] * 11, row["refused"], effort]
    bounds = row["roofline"]
    chip = CHIPS[PLACES[place][0].split(":")[0]]
    longest = max(bounds.values())
    bounds = bounds | {"accessed": row["accessed_bytes"] / chip.bandwidth}
    times = [
        f"{bounds[part] * 1e3:.1f}" for part in ("compute", "memory", "accessed", "interconnect", "network")
    ]
    sent = "; ".join(
        f"{kind} {count}, {size / 1e6:.1f}" for kind, (count, size) in sorted(row["collectives"].items())
    )
    return [
        *start,
        f"{row['peak_bytes'] / 1e9:.1f} of {chip.memory / 1e9:.0f}",
        f"{row['flops'] / 1e12:.1f}",
        *times,
        row["bound"],
        f"{100 * row['model_flops'] / chip.flops / longest:.0f}",
        *_estimated(row, row["model_flops"] / chip.flops),
        sent or "none",
        effort,
    ]


def _estimated(row: dict[str, Any], compute: float) -> tuple[str, str]:
    """The cells of the compiler's estimate; `compute`: seconds of the network's FLOPs at the chip's peak."""
    if not row.get("estimate"):  # from an earlier version, or without cycle counts
        return "-", "-"
    parts = f"{row['products'] * 1e3:.1f} + {row['others'] * 1e3:.1f}"
    return parts, f"{100 * compute / row['estimate']:.0f}"


def write(rows: dict[str, Any], out: Path) -> None:
    """Writes the JSON file and the table."""
    write_json(out, dict(sorted(rows.items())))
    names = [name for program in PLANS for place in PLACES if (name := f"{program} on {place}") in rows]
    table = [HEAD, ("---",) * len(HEAD), *(cells(name, rows[name]) for name in names)]
    write_bytes(out.with_suffix(".md"), "".join(f"| {' | '.join(line)} |\n" for line in table).encode())


def main() -> None:
    """Compiles the missing rows, each in a separate process."""
    arguments = tyro.cli(Arguments, description=__doc__)
    rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for place in arguments.topologies:
        for program in arguments.only:
            name = f"{program} on {place}"
            if name in rows:
                continue
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                row = pool.submit(compile_row, program, place).result()
            rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
            rows[name] = row
            write(rows, arguments.out)
            print(" | ".join(cells(name, row)), flush=True)


if __name__ == "__main__":
    main()
