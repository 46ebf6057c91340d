"""`melody compile-tpu`: compiles the training step of a stage, or the sampler, for TPUs that are not
attached.

    melody compile-tpu --config configs/lm_paper.py --topology v5e:4x4 --batch_size 128 --mesh 16 1 1

Needs libtpu (the extra `tpu`) but no TPU. The figures are the compiler's plan and the chips' published peaks,
not measurements: loops whose iterations depend on each other (the SRU's scan) add latency that no roofline
shows.
"""

import dataclasses
import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from melody_jax.chips import CHIPS, Chip, Roofline, roofline
from melody_jax.collectives import busiest_axis, read_collectives, total_by_kind
from melody_jax.config import TrainConfig, load_config, with_fields
from melody_jax.errors import UserError, first_line
from melody_jax.extras import install_hint
from melody_jax.flops import matmul_cost
from melody_jax.hlo import estimated_cycles
from melody_jax.models.functional import Remat
from melody_jax.options import option
from melody_jax.sharding import make_mesh
from melody_jax.systems import SYSTEMS

SAMPLER = "sampler"


@dataclass(frozen=True, kw_only=True)
class CompileConfig:
    """Compiles a training step, or the sampler, for TPUs ahead of time."""

    config: str = option("", group="what to compile")
    """Config of the stage, or "sampler": text to waveform with networks of the paper's size."""
    system: str = option("melody", choices=tuple(SYSTEMS))
    """The system whose sampler is compiled."""
    topology: str = option("v5e:4x4", group="chips")
    """Chips of a slice: v5e:2x2 to v5e:16x16, v5p:2x2x1 to v5p:4x4x4, v6e:2x2 to v6e:16x16."""
    slices: int = 1
    """Number of slices, connected by the data centre's network; it must divide the mesh's data axis."""
    mesh: tuple[int, int, int] = (1, -1, 1)
    """Sizes of the mesh axes data, fsdp and tensor; one may be -1."""
    zero_stage: Literal[1, 3] | None = None
    """What the axis fsdp splits, as in `melody train`; None: the config's."""
    batch_size: int = option(0, group="how to train")
    """Items per step on all chips; 0: the config's, or one per chip for the sampler."""
    dtype: str = "bfloat16"
    """Compute dtype of the network; weights and optimiser state are float32."""
    remat: Remat | None = None
    """Rematerialisation in the backward pass, for networks that support it: "none", "dots" or "blocks"; None: the
    config's."""
    quick: bool = option(False, group="how to compile")
    """Compile with less effort, several times faster; memory and collectives then differ from a real run."""


@dataclass(frozen=True, kw_only=True)
class CompileReport:
    """The cost of a compiled program, per chip unless stated otherwise."""

    devices: int
    """Number of chips."""
    batch_size: int
    """Items per step on all chips."""
    argument_bytes: float
    """Bytes of state and batch."""
    temporary_bytes: float
    """Bytes of activations and buffers."""
    peak_bytes: float
    """Peak memory: both, and outputs that do not reuse an argument's memory."""
    flops: float
    """FLOPs of matrix products and convolutions."""
    moved_bytes: float
    """Lower bound on the bytes to and from HBM: the larger of one pass over arguments and outputs with two
    over temporaries, and of all operands and results of matrix products."""
    accessed_bytes: float
    """Bytes that all operations read and write by XLA's count: too many if data stay in on-chip memory, too
    few for loops, whose bodies it counts once."""
    collectives: dict[str, tuple[int, float]]
    """Kind -> (number per step, received bytes); "recv" is between slices."""
    roofline: Roofline
    """Lower bounds on the time of a step."""
    products: float
    """Seconds of the operations with matrix products, by the compiler's estimate."""
    others: float
    """Seconds of all other operations but communication, by the compiler's estimate."""
    fits: bool
    """Whether the peak fits into the chip's memory."""

    @property
    def estimate(self) -> float:
        """Seconds of a step if communication and the rest overlap perfectly: the longer of the two counts."""
        return max(self.products + self.others, self.roofline.interconnect, self.roofline.network)


def compile_tpu(config: CompileConfig) -> CompileReport:
    """Compiles the program, prints the report and returns it.

    Raises:
        UserError: there is no config, topology or libtpu, the mesh or the batch does not divide, or the
        program is too
            large for the chips' memory.
    """
    if not config.config:
        raise UserError("--config is missing; give a config such as lm_paper, or sampler")
    report = analyse(config)
    print(describe(report, config.topology, config.slices))
    return report


def analyse(config: CompileConfig) -> CompileReport:
    """Compiles without printing. Raises `UserError` as `compile_tpu`."""
    if config.topology.split(":")[0] not in CHIPS:
        raise UserError(
            f"topology {config.topology!r}: the chip must be one of {', '.join(CHIPS)}, as in v5e:4x4"
        )
    mesh = make_mesh(config.mesh, _devices(config.topology, config.slices))
    traced, size = _traced(config, mesh)
    return examine(traced, size, mesh, config)


def model_flops(config: CompileConfig) -> float:
    """FLOPs of a step on all chips without rematerialisation, as the definition of MFU requires."""
    mesh = make_mesh(config.mesh, _devices(config.topology, config.slices))
    return matmul_cost(_traced(dataclasses.replace(config, remat="none"), mesh)[0].jaxpr)[0]


def _traced(config: CompileConfig, mesh: Mesh) -> tuple[Any, int]:
    """The traced program and its items per step."""
    from melody_jax.models import mulan, vae
    from melody_jax.scale.programs import PAPER_SAMPLER, trace_sampler, trace_step
    from melody_jax.scale.system_programs import paper_configs, trace_system

    if config.config == SAMPLER:
        if config.remat not in (None, "none"):
            raise UserError(
                f"--remat is {config.remat}; it must be none, for the sampler has no backward pass"
            )
        size = config.batch_size or mesh.size
        if config.system != "melody":
            configs = {
                name: with_fields(network, dtype=config.dtype)
                for name, network in paper_configs(config.system).items()
            }
            return trace_system(config.system, configs, size, mesh), size
        sampler = with_fields(PAPER_SAMPLER, dtype=config.dtype)
        encoder = with_fields(mulan.PAPER, dtype=config.dtype)
        decoder = with_fields(vae.PAPER, dtype=config.dtype)
        return trace_sampler(sampler, encoder, decoder, size, mesh), size
    if config.system != "melody":
        raise UserError(
            f"--system is {config.system}, but --config {config.config} is a stage; it must be sampler"
        )
    run = _adapted(load_config(config.config), config)
    return trace_step(run, mesh), run.data.batch_size


def examine(traced: Any, batch_size: int, mesh: Mesh, config: CompileConfig) -> CompileReport:
    """Compiles a traced program and reports its cost. Raises `UserError` if it does not compile or fit."""
    chip = _chip(config.topology)
    options = {"exec_time_optimization_effort": -1.0}
    try:
        compiled = traced.lower().compile(compiler_options=options if config.quick else None)
    except jax.errors.JaxRuntimeError as error:
        reason = next(
            (line for line in str(error).splitlines() if "memory" in line.lower()), str(error)[:200]
        )
        raise UserError(f"{config.topology}: the program does not compile ({reason.strip()[:300]})") from None
    sizes = compiled.memory_analysis()
    text = compiled.as_text()
    sent = read_collectives(text)
    cycles = estimated_cycles(text)
    totals = total_by_kind(sent)
    persistent = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    flops, products = (total / mesh.size for total in matmul_cost(traced.jaxpr))
    moved = max(persistent + 2 * sizes.temp_size_in_bytes, products)
    peak = persistent - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes
    inside = busiest_axis(sent, [device.coords[: chip.axes] for device in mesh.devices.flat])
    across = totals.get("recv", (0, 0.0))[1]
    return CompileReport(
        devices=mesh.size,
        batch_size=batch_size,
        argument_bytes=sizes.argument_size_in_bytes,
        temporary_bytes=sizes.temp_size_in_bytes,
        peak_bytes=peak,
        flops=flops,
        moved_bytes=moved,
        accessed_bytes=compiled.cost_analysis()["bytes accessed"],
        collectives=totals,
        roofline=roofline(chip, flops, moved, inside, across),
        products=cycles.products / chip.clock,
        others=cycles.others / chip.clock,
        fits=peak <= chip.memory,
    )


def _adapted(config: TrainConfig, options: CompileConfig) -> TrainConfig:
    """The stage's config with the dtype, remat, batch size and mesh of the command."""
    changes = {"dtype": options.dtype} | ({} if options.remat is None else {"remat": options.remat})
    model = with_fields(config.stage.model, **changes)
    size = options.batch_size or config.data.batch_size
    return dataclasses.replace(
        config,
        stage=dataclasses.replace(config.stage, model=model),
        data=dataclasses.replace(config.data, batch_size=size),
        mesh=options.mesh,
        zero_stage=options.zero_stage or config.zero_stage,
    )


def _chip(topology: str) -> Chip:
    return CHIPS[topology.split(":")[0]]


def _devices(topology: str, slices: int) -> list[Any]:
    """Devices of the topology, which are not attached."""
    jax.config.update("jax_platforms", "cpu")  # libtpu compiles, it must not look for chips
    # no chip is used, so several processes may compile at the same time
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
        return list(description.devices)
    except Exception as error:
        reason = first_line(error)
        hint = "" if find_spec("libtpu") else f"; {install_hint('libtpu')}"
        raise UserError(f"topology {topology!r} is not available ({reason}){hint}") from None


def describe(report: CompileReport, topology: str, slices: int = 1) -> str:
    """The report as text, per chip."""
    chip = _chip(topology)
    bounds = report.roofline
    fit = "fits" if report.fits else "DOES NOT FIT"
    place = topology if slices == 1 else f"{slices} slices of {topology}"
    lines = [
        f"{report.devices} chips ({place}), {report.batch_size} items per step; per chip:",
        f"  memory       {report.peak_bytes / 1e9:.2f} of {chip.memory / 1e9:.0f} GB: {fit} "
        f"(arguments {report.argument_bytes / 1e9:.2f}, temporary {report.temporary_bytes / 1e9:.2f})",
        f"  compute      {report.flops / 1e12:.2f} TFLOP, at least {bounds.compute * 1e3:.1f} ms",
        f"  HBM          at least {bounds.memory * 1e3:.1f} ms; "
        f"{report.accessed_bytes / chip.bandwidth * 1e3:.1f} ms by XLA's count, which includes loops once",
        f"  interconnect at least {bounds.interconnect * 1e3:.1f} ms",
    ]
    lines += [f"  network      at least {bounds.network * 1e3:.1f} ms"] if slices > 1 else []
    lines += [
        f"    {kind}: {count}, {size / 1e6:.1f} MB"
        for kind, (count, size) in sorted(report.collectives.items())
    ]
    lines.append(f"  bound by {bounds.bound}; at most {100 * bounds.utilisation:.0f} % of the peak FLOP/s")
    if report.estimate == 0:
        return "\n".join(lines)
    lines.append(
        f"  estimate     {report.estimate * 1e3:.1f} ms: by the compiler {report.products * 1e3:.1f} ms with "
        f"products, {report.others * 1e3:.1f} ms with the rest; {100 * bounds.compute / report.estimate:.0f} % of the "
        "peak FLOP/s"
    )
    return "\n".join(lines)
