"""`melody compile-tpu`: compiles a stage's real training step for a TPU topology that is not here, and reports on it.

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
import jax.numpy as jnp

from melody_jax.config import DataConfig, TrainConfig, load_config
from melody_jax.data import facts
from melody_jax.errors import UserError
from melody_jax.models.functional import Remat
from melody_jax.scale.chips import CHIPS, Roofline, roofline
from melody_jax.scale.counting import collectives, matmul_flops
from melody_jax.training.checkpoint import abstract_like
from melody_jax.training.loop import make_step
from melody_jax.training.sharding import batch_sharding, make_mesh, state_sharding, using
from melody_jax.training.state import create_state


@dataclass(frozen=True, kw_only=True)
class CompileConfig:
    """Compiles a training step for TPUs ahead of time."""

    config: str = ""
    """Config file of the stage."""
    topology: str = "v5e:4x4"
    """Chips: v5e:2x2 to v5e:16x16, v5p:2x2x1 to v5p:4x4x4, v6e:2x2 to v6e:16x16."""
    slices: int = 1
    """Slices of that topology, joined by the data centre's network."""
    mesh: tuple[int, int, int] = (1, -1, 1)
    """Sizes of the axes data, fsdp and tensor."""
    batch_size: int = 0
    """Items a step over all chips; 0: as the config says."""
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
    collectives: dict[str, tuple[int, float]]
    """kind -> how many a step, bytes received."""
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
    run = _adapted(load_config(config.config), config)
    report = analyse(run, config.topology, config.slices, config.quick)
    print(describe(report, config.topology))
    return report


def analyse(config: TrainConfig, topology: str, slices: int = 1, quick: bool = False) -> Report:
    """The training step of `config`, with its mesh and batch, on a topology. Raises `UserError` as `compile_tpu`."""
    name = topology.split(":")[0]
    if name not in CHIPS:
        raise UserError(f"topology {topology!r}: the chip must be one of {', '.join(CHIPS)}, as in v5e:4x4")
    chip, mesh = CHIPS[name], make_mesh(config.mesh, _devices(topology, slices))
    if config.data.batch_size % (mesh.shape["data"] * mesh.shape["fsdp"]):
        raise UserError(f"batch_size {config.data.batch_size} does not divide over mesh {tuple(mesh.shape.values())}")
    shapes = jax.eval_shape(lambda key: create_state(config, key), jax.random.key(0))
    state = abstract_like(shapes, state_sharding(shapes, mesh))
    rows = batch_sharding(mesh)
    batch = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=rows), example(config))
    step = make_step(config, state)
    with using(mesh):
        traced = step.trace(state, batch)
    options = {"exec_time_optimization_effort": -1.0} if quick else None
    try:
        compiled = traced.lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        reason = next((line for line in str(error).splitlines() if "memory" in line.lower()), str(error)[:200])
        raise UserError(f"{topology}: the step cannot be compiled ({reason.strip()[:300]})") from None
    sizes, devices = compiled.memory_analysis(), mesh.size
    peak = (
        sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes
    )
    flops, sent = matmul_flops(traced.jaxpr) / devices, collectives(compiled.as_text())
    moved = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + 2 * sizes.temp_size_in_bytes
    return Report(
        devices=devices,
        batch_size=config.data.batch_size,
        argument_bytes=sizes.argument_size_in_bytes,
        temporary_bytes=sizes.temp_size_in_bytes,
        peak_bytes=peak,
        flops=flops,
        collectives=sent,
        roofline=roofline(chip, flops, moved, sum(size for _, size in sent.values())),
        fits=peak <= chip.memory,
    )


def example(config: TrainConfig) -> dict[str, Any]:
    """The shapes of a batch of the stage's kind (data/pipeline.py), as `ShapeDtypeStruct`s."""
    data, stage = config.data, config.stage

    def rows(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((data.batch_size, *shape), dtype)

    if stage.batch == "features":
        frames, width = _latents(stage, data)
        tokens, prefix = rows(data.window_tokens, dtype=jnp.int32), rows(12, dtype=jnp.int32)
        return {"semantic_tokens": tokens, "prefix_tokens": prefix, "latents": rows(frames, width)}
    audio = {"audio": rows(data.crop_samples)}
    if stage.batch == "audio":
        return audio
    words = {"text_ids": rows(data.text_length, dtype=jnp.int32), "text_mask": rows(data.text_length)}
    known = {name: rows(*value.shape, dtype=value.dtype) for name, value in facts.labels({}).items()}
    return audio | words | {"facts": known}


def _latents(stage: Any, data: DataConfig) -> tuple[int, int]:
    """Frames and channels of the latents; the LM does not look at them."""
    return (stage.model.frames, stage.model.latent_dim) if stage.name == "dpd" else (data.window_tokens, 1)


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


def with_fields(model: Any, **changes: Any) -> Any:
    """A model's config with fields changed wherever it, or a config inside it, has them."""
    inner = {
        field.name: with_fields(getattr(model, field.name), **changes)
        for field in dataclasses.fields(model)
        if dataclasses.is_dataclass(getattr(model, field.name))
    }
    own = {name: value for name, value in changes.items() if hasattr(model, name)}
    return dataclasses.replace(model, **inner, **own)


def _devices(topology: str, slices: int) -> list[Any]:
    jax.config.update("jax_platforms", "cpu")  # libtpu compiles, it must not look for chips
    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost")):
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    more = {"num_slices": slices} if slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"topology {topology!r} is not to be had ({reason}); libtpu comes with the extra tpu") from None


def describe(report: Report, topology: str) -> str:
    """The report in words, for one chip."""
    chip, line = CHIPS[topology.split(":")[0]], report.roofline
    verdict = "fits" if report.fits else "DOES NOT FIT"
    lines = [
        f"{report.devices} chips ({topology}), {report.batch_size} items a step; for each chip:",
        f"  memory       {report.peak_bytes / 1e9:.2f} of {chip.memory / 1e9:.0f} GB: {verdict} "
        f"(arguments {report.argument_bytes / 1e9:.2f}, temporary {report.temporary_bytes / 1e9:.2f})",
        f"  compute      {report.flops / 1e12:.2f} TFLOP, at least {line.compute * 1e3:.1f} ms",
        f"  HBM          at least {line.memory * 1e3:.1f} ms",
        f"  interconnect at least {line.interconnect * 1e3:.1f} ms",
    ]
    lines += [f"    {kind}: {count}, {size / 1e6:.1f} MB" for kind, (count, size) in sorted(report.collectives.items())]
    lines.append(f"  bound by {line.bound}; at most {100 * line.utilisation:.0f} % of the peak FLOP/s")
    return "\n".join(lines)
