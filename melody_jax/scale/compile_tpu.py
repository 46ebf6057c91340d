"""`melody compile-tpu`: compiles a stage's real training step, or the sampler, for TPUs that are not here.

    melody compile-tpu --config configs/lm_paper.py --topology v5e:4x4 --batch_size 128 --mesh 16 1 1

Needs libtpu (`pip install melody_jax[tpu]`) and no TPU. The figures say what the compiler planned and what the chips'
published peaks allow, not what a run would reach: above all, loops that wait for their own last result (the SRU's scan)
cost latency that no roofline sees.
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from melody_jax.chips import CHIPS, Roofline, roofline
from melody_jax.config import TrainConfig, load_config
from melody_jax.errors import UserError
from melody_jax.flops import collectives, matmul_cost
from melody_jax.models import mulan, vae
from melody_jax.models.functional import Remat
from melody_jax.scale.programs import PAPER_SAMPLER, trace_sampler, trace_step, with_fields
from melody_jax.sharding import make_mesh

SAMPLER = "sampler"


@dataclass(frozen=True, kw_only=True)
class CompileConfig:
    """Compiles a training step, or the sampler, for TPUs ahead of time."""

    config: str = ""
    """Config file of the stage; or "sampler": text to sound by the networks of the paper's size."""
    topology: str = "v5e:4x4"
    """Chips: v5e:2x2 to v5e:16x16, v5p:2x2x1 to v5p:4x4x4, v6e:2x2 to v6e:16x16."""
    slices: int = 1
    """Slices of that topology, joined by the data centre's network; they must divide the mesh's data axis."""
    mesh: tuple[int, int, int] = (1, -1, 1)
    """Sizes of the axes data, fsdp and tensor."""
    batch_size: int = 0
    """Items a step over all chips; 0: as the config says, one a chip for the sampler."""
    dtype: str = "bfloat16"
    """Compute type of the network; weights and optimiser stay float32."""
    remat: Remat = "none"
    """What the backward pass computes again, where the network can: "none", "dots" or "blocks"."""
    quick: bool = False
    """Compiles with less effort, several times faster: memory and collectives are then not those of a real run."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found, per chip unless said otherwise."""

    devices: int
    batch_size: int
    argument_bytes: float
    """State and batch."""
    temporary_bytes: float
    """Activations and buffers."""
    peak_bytes: float
    """Both, and what is returned without taking an argument's place."""
    flops: float
    """Of matrix products and convolutions."""
    moved_bytes: float
    """To and from HBM at least: the larger of one pass over what is kept and two over what is temporary, and of what
    all matrix products read and write."""
    accessed_bytes: float
    """What all operations read and write by XLA's own count: too much where something stays in the chip's fast memory,
    too little where there are loops, whose bodies it counts once."""
    collectives: dict[str, tuple[int, float]]
    """kind -> how many a step, bytes received; "recv" are those between slices."""
    roofline: Roofline
    fits: bool


def compile_tpu(config: CompileConfig) -> Report:
    """Compiles, prints and returns the report.

    Raises:
        UserError: no config, an unknown topology, no libtpu, a mesh or a batch that does not divide, or a program that
            the compiler finds too large for the chips' memory.
    """
    if not config.config:
        raise UserError("--config is missing; see melody compile-tpu --help")
    report = analyse(config)
    print(describe(report, config.topology, config.slices))
    return report


def analyse(config: CompileConfig) -> Report:
    """Compiles without printing. Raises `UserError` as `compile_tpu`."""
    if config.topology.split(":")[0] not in CHIPS:
        raise UserError(
            f"topology {config.topology!r}: the chip must be one of {', '.join(CHIPS)}, as in v5e:4x4"
        )
    mesh = make_mesh(config.mesh, _devices(config.topology, config.slices))
    traced, size = _traced(config, mesh)
    return examine(traced, size, mesh, config)


def model_flops(config: CompileConfig) -> float:
    """FLOPs of the whole batch on all chips without what `remat` computes twice: what MFU is about."""
    mesh = make_mesh(config.mesh, _devices(config.topology, config.slices))
    return matmul_cost(_traced(dataclasses.replace(config, remat="none"), mesh)[0].jaxpr)[0]


def _traced(config: CompileConfig, mesh: Mesh) -> tuple[Any, int]:
    """The program and its items a step."""
    if config.config == SAMPLER:
        if config.remat != "none":
            raise UserError("--remat: the sampler has no backward pass")
        models = (PAPER_SAMPLER, mulan.PAPER, vae.PAPER)
        sampler, encoder, decoder = (with_fields(model, dtype=config.dtype) for model in models)
        size = config.batch_size or mesh.size
        return trace_sampler(sampler, encoder, decoder, size, mesh), size
    run = _adapted(load_config(config.config), config)
    return trace_step(run, mesh), run.data.batch_size


def examine(traced: Any, batch_size: int, mesh: Mesh, config: CompileConfig) -> Report:
    """Compiles what was traced for the mesh and counts. Raises `UserError` if it does not fit or does not compile."""
    chip, options = CHIPS[config.topology.split(":")[0]], {"exec_time_optimization_effort": -1.0}
    try:
        compiled = traced.lower().compile(compiler_options=options if config.quick else None)
    except jax.errors.JaxRuntimeError as error:
        reason = next(
            (line for line in str(error).splitlines() if "memory" in line.lower()), str(error)[:200]
        )
        raise UserError(f"{config.topology}: it cannot be compiled ({reason.strip()[:300]})") from None
    sizes, sent = compiled.memory_analysis(), collectives(compiled.as_text())
    kept = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    flops, products = (total / mesh.size for total in matmul_cost(traced.jaxpr))
    moved = max(kept + 2 * sizes.temp_size_in_bytes, products)
    peak = kept - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes
    across = sent.get("recv", (0, 0.0))[1]
    inside = sum(size for _, size in sent.values()) - across
    return Report(
        devices=mesh.size,
        batch_size=batch_size,
        argument_bytes=sizes.argument_size_in_bytes,
        temporary_bytes=sizes.temp_size_in_bytes,
        peak_bytes=peak,
        flops=flops,
        moved_bytes=moved,
        accessed_bytes=compiled.cost_analysis()["bytes accessed"],
        collectives=sent,
        roofline=roofline(chip, flops, moved, inside, across),
        fits=peak <= chip.memory,
    )


def _adapted(config: TrainConfig, wanted: CompileConfig) -> TrainConfig:
    model = with_fields(
        config.stage.model, dtype=wanted.dtype, **({"remat": wanted.remat} if wanted.remat != "none" else {})
    )
    size = wanted.batch_size or config.data.batch_size
    return dataclasses.replace(
        config,
        stage=dataclasses.replace(config.stage, model=model),
        data=dataclasses.replace(config.data, batch_size=size),
        mesh=wanted.mesh,
    )


def _devices(topology: str, slices: int) -> list[Any]:
    jax.config.update("jax_platforms", "cpu")  # libtpu compiles, it must not look for chips
    # no chip is used, so several of these may run at once on a machine
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    more = {"num_slices": slices} if slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"topology {topology!r} is not to be had ({reason}); libtpu comes with the extra tpu"
        ) from None


def describe(report: Report, topology: str, slices: int = 1) -> str:
    """The report in words, for one chip."""
    chip, line = CHIPS[topology.split(":")[0]], report.roofline
    verdict = "fits" if report.fits else "DOES NOT FIT"
    place = topology if slices == 1 else f"{slices} slices of {topology}"
    lines = [
        f"{report.devices} chips ({place}), {report.batch_size} items a step; for each chip:",
        f"  memory       {report.peak_bytes / 1e9:.2f} of {chip.memory / 1e9:.0f} GB: {verdict} "
        f"(arguments {report.argument_bytes / 1e9:.2f}, temporary {report.temporary_bytes / 1e9:.2f})",
        f"  compute      {report.flops / 1e12:.2f} TFLOP, at least {line.compute * 1e3:.1f} ms",
        f"  HBM          at least {line.memory * 1e3:.1f} ms; "
        f"{report.accessed_bytes / chip.bandwidth * 1e3:.1f} ms by XLA's count, loops once",
        f"  interconnect at least {line.interconnect * 1e3:.1f} ms",
    ]
    lines += [f"  network      at least {line.network * 1e3:.1f} ms"] if slices > 1 else []
    lines += [
        f"    {kind}: {count}, {size / 1e6:.1f} MB"
        for kind, (count, size) in sorted(report.collectives.items())
    ]
    lines.append(f"  bound by {line.bound}; at most {100 * line.utilisation:.0f} % of the peak FLOP/s")
    return "\n".join(lines)
