"""FLOPs and collectives are counted in every iteration; rooflines and reports follow from them."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers.systems import tiny_configs

from melody_jax.chips import CHIPS, roofline
from melody_jax.collectives import Collective, busiest_axis, read_collectives, total_by_kind
from melody_jax.composer.facts import VOCABULARY
from melody_jax.config import DataConfig, TrainConfig, load_config, with_fields
from melody_jax.errors import UserError
from melody_jax.flops import matmul_cost
from melody_jax.hlo import estimated_cycles
from melody_jax.models import (
    ast,
    dpd,
    functional,
    htsat,
    lm,
    lm_config,
    mulan,
    tokenizer,
    vae,
)
from melody_jax.models.wav2vec2 import Wav2Vec2Config
from melody_jax.sampling.windows import SamplerConfig
from melody_jax.scale import compile_tpu, programs, system_programs
from melody_jax.sharding import make_mesh
from melody_jax.systems import SYSTEMS
from melody_jax.training.stages.consistency import ConsistencyStage
from melody_jax.training.stages.dpd import DPDStage
from melody_jax.training.stages.lm import LMStage
from melody_jax.training.stages.mulan import MuLanStage
from melody_jax.training.stages.tokenizer import TokenizerStage
from melody_jax.training.stages.vae import VAEStage


def test_loops_count_as_often_as_they_run() -> None:
    x = jnp.ones((4, 8))
    w = jnp.ones((3, 8, 8))

    def run(x: jax.Array) -> jax.Array:
        x = jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w[0] @ w[1], lambda x: x @ w[0], x)

    flops, moved = matmul_cost(jax.make_jaxpr(run)(x))
    assert flops == (3 + 2) * 2 * 4 * 8 * 8
    assert moved == (3 + 2) * 4 * (4 * 8 + 8 * 8 + 4 * 8)
    back = jax.make_jaxpr(jax.grad(lambda x: jax.checkpoint(run)(x).sum()))(x)
    assert matmul_cost(back)[0] >= 2 * 5 * 2 * 4 * 8 * 8


CONVOLVE = partial(
    jax.lax.conv_general_dilated,
    window_strides=(2,),
    padding="VALID",
    dimension_numbers=("NWC", "WIO", "NWC"),
)
"""A convolution along time with a stride of two."""


def test_convolutions() -> None:
    traced = jax.make_jaxpr(CONVOLVE)(jnp.ones((2, 21, 5)), jnp.ones((3, 5, 7)))
    assert matmul_cost(traced) == (2 * 2 * 10 * 7 * 3 * 5, 4 * (2 * 21 * 5 + 3 * 5 * 7 + 2 * 10 * 7))


def test_dilated_inputs_of_convolutions_do_not_count() -> None:
    """The gradient of a strided convolution inserts zeros, which nobody multiplies."""
    x, kernel = jnp.ones((1, 64, 4)), jnp.ones((4, 4, 4))
    forward = matmul_cost(jax.make_jaxpr(CONVOLVE)(x, kernel))[0]
    backward = matmul_cost(jax.make_jaxpr(jax.grad(lambda x: CONVOLVE(x, kernel).sum()))(x))[0] - forward
    assert backward == pytest.approx(forward, rel=0.1)


def test_a_language_models_step_costs_six_flops_a_weight_and_token() -> None:
    config = lm_config.LMConfig(layers=3, width=64, heads=2, ffn=128, recall=False, prefix_everywhere=False)
    config_tokens = 2 * (12 + 20 - 1)
    shapes = jax.eval_shape(partial(lm.init, config), jax.random.key(0))
    tokens = jnp.zeros((2, 20), jnp.int32)

    def loss(params: dict) -> jax.Array:
        return lm.logits(params, config, jnp.zeros((2, 12), jnp.int32), tokens).sum()

    flops, _ = matmul_cost(jax.make_jaxpr(jax.grad(loss))(shapes))
    weights = functional.count(shapes["blocks"]) + functional.count(shapes["head"])
    assert flops == pytest.approx(6 * weights * config_tokens, rel=0.15)


HLO = """
%cond (p: (u32[], f32[8])) -> pred[] {
  %constant.1 = u32[]{:T(128)} constant(5)
  ROOT %compare = pred[] compare(%gte, %constant.1), direction=LT
}

%body (p: (u32[], f32[8])) -> (u32[], f32[8]) {
  %all-gather.1 = bf16[16,8]{1,0} all-gather(%a), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %collective-permute-start = (f32[4,2]{1,0}, f32[4,2]{1,0}, u32[], u32[]) collective-permute-start(%b)
  %collective-permute-done = f32[4,2]{1,0} collective-permute-done(%collective-permute-start)
}

%inner (p: f32[8]) -> f32[8] {
  %all-reduce = (f32[10], f32[6]) all-reduce(%c, %d), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}
  %recv.1 = (bf16[4,8]{1,0}, u32[], token[]) recv(%after-all), channel_id=1, is_host_transfer=true
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %while.1 = (u32[], f32[8]) while(%tuple), condition=%cond, body=%body
  %while.2 = (u32[], f32[8]) while(%tuple), condition=%gone, body=%body, backend_config={"known_trip_count":{"n":"2"}}
  %reduce-scatter = f32[10]{0} reduce-scatter(%f), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
  ROOT %call = f32[8] call(%e), to_apply=%inner
}
"""


def test_branches_of_conditionals_count() -> None:
    hlo = """
%reduces (p: f32[8]) -> f32[8] {
  ROOT %all-reduce = f32[8] all-reduce(%p), replica_groups={{0,1}}
}

%skips (p: f32[8]) -> f32[8] {
  ROOT %copy = f32[8] copy(%p), backend_config={"estimated_cycles":"9"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  ROOT %conditional = f32[8] conditional(%index, %p, %p), branch_computations={%reduces, %skips}
}
"""
    assert total_by_kind(read_collectives(hlo)) == {"all-reduce": (1, 8 * 4)}
    assert estimated_cycles(hlo) == (0, 9)


def test_cycles_count_in_every_iteration_and_once_for_what_is_fused() -> None:
    cost = ', backend_config={"estimated_cycles":"%d"}'
    hlo = f"""
%cond (p: u32[]) -> pred[] {{
  %constant.1 = u32[] constant(3)
  ROOT %compare = pred[] compare(%gte, %constant.1), direction=LT
}}

%inner (p: bf16[8]) -> bf16[8] {{
  ROOT %convolution.1 = bf16[8] convolution(%p, %p){cost % 1_000}
}}

%fused (p: bf16[8]) -> bf16[8] {{
  ROOT %fusion.1 = bf16[8] fusion(%p), kind=kOutput, calls=%inner{cost % 1_000}
}}

%body (p: bf16[8]) -> bf16[8] {{
  %fusion.2 = bf16[8] fusion(%p), kind=kOutput, calls=%fused{cost % 40}
  ROOT %fusion.3 = bf16[8] fusion(%fusion.2), kind=kLoop, calls=%sum{cost % 5}
}}

ENTRY %main (p: bf16[8]) -> bf16[8] {{
  %while.1 = bf16[8] while(%p), condition=%cond, body=%body
  ROOT %copy.1 = bf16[8] copy(%while.1){cost % 7}
}}
"""
    assert estimated_cycles(hlo) == (3 * 40, 3 * 5 + 7)


def test_collectives_by_kind_and_bytes() -> None:
    assert total_by_kind(read_collectives(HLO)) == {
        "all-gather": (7, 7 * 16 * 8 * 2 * 3 / 4),
        "collective-permute": (7, 7 * 4 * 2 * 4),
        "all-reduce": (1, 16 * 4 * 2 * 3 / 4),
        "reduce-scatter": (1, 10 * 4 * 3),
        "recv": (1, 4 * 8 * 2),
    }


@pytest.mark.parametrize(
    ("notation", "devices"),
    [
        ("{{0,4},{1,5}}", (0, 4)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[8]", (0, 1)),
        ("[4,2]<=[2,4]T(1,0), dimensions={0}", (0, 4)),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", (0, 2, 4, 6)),
        ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("mesh['a'=2,'b'=4] {'a','b'}", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", (0, 1)),
    ],
)
def test_groups_in_every_notation(notation: str, devices: tuple[int, ...]) -> None:
    hlo = f"""
ENTRY %main (a: f32[8]) -> f32[8] {{
  %all-gather = f32[16]{{0}} all-gather(%a), channel_id=1, replica_groups={notation}, use_global_device_ids=true
}}
"""
    (one,) = read_collectives(hlo)
    n = len(devices)
    assert one == Collective("all-gather", 1, pytest.approx(64 * (n - 1) / n), devices)


def test_a_collective_over_one_axis_has_the_links_of_that_axis() -> None:
    """On 16 x 16 chips, a gather along rows leaves the links of columns idle; one over all chips uses both."""
    positions = [(x, y) for x in range(16) for y in range(16)]
    rows = Collective("all-gather", 3, 100.0, tuple(range(16)))
    columns = Collective("all-reduce", 1, 120.0, tuple(range(0, 256, 16)))
    everywhere = Collective("all-reduce", 2, 80.0, tuple(range(256)))
    neighbour = Collective("collective-permute", 1, 7.0, (0, 16))
    elsewhere = Collective("recv", 1, 1e9, ())
    assert busiest_axis([rows, elsewhere], positions) == 300
    assert busiest_axis([rows, columns], positions) == 300
    assert busiest_axis([rows, columns, everywhere], positions) == 380
    assert busiest_axis([columns, neighbour], positions) == 127
    assert busiest_axis([], positions) == 0


def test_a_gather_of_weights_on_a_v5e_takes_what_was_derived() -> None:
    """5.6 GB along one axis of a 16 x 16 slice: 56 ms on the two links of that axis, not 28 on all four."""
    chip = CHIPS["v5e"]
    line = roofline(chip, flops=0.0397 * chip.flops, moved=0, inside=5.6e9)
    assert line.interconnect == pytest.approx(0.056)
    assert line.bound == "interconnect"
    assert line.utilisation == pytest.approx(0.71, abs=0.01)


def test_unreadable_groups_are_not_counted_as_none() -> None:
    with pytest.raises(ValueError, match="no replica groups"):
        read_collectives(HLO.replace("replica_groups=[2,4]<=[8]", "replica_groups=?"))


def test_what_takes_longest_binds() -> None:
    chip = CHIPS["v5e"]
    line = roofline(chip, flops=chip.flops, moved=2 * chip.bandwidth, inside=0)
    assert (line.compute, line.memory, line.interconnect, line.network, line.bound) == (1, 2, 0, 0, "memory")
    assert line.utilisation == 0.5
    line = roofline(chip, flops=chip.flops, moved=0, inside=chip.interconnect / 2, across=4 * chip.network)
    assert (line.interconnect, line.network, line.bound, line.utilisation) == (1, 4, "network", 0.25)


ROOT = Path(__file__).parents[1]
LARGE = """
from melody_jax.config import DataConfig, TrainConfig, with_fields
from melody_jax.models.lm_config import LMConfig
from melody_jax.training.stages.lm import LMStage


def config():
    model = LMConfig(layers=1, width=32768, heads=64, ffn=131072, recall=False)
    return TrainConfig(stage=LMStage(model=model), data=DataConfig(batch_size=16, window_tokens=25))
"""
SCRIPT = """
from melody_jax.errors import UserError
from melody_jax.scale.compile_tpu import CompileConfig, analyse

report = analyse(CompileConfig(config={config!r}, topology="v5e:2x2", slices=2, mesh=(2, 4, 1), quick=True))
try:
    analyse(CompileConfig(config={large!r}, topology="v5e:2x2", mesh=(1, 4, 1), quick=True))
except UserError as error:
    refused = str(error)
print(*report.collectives)
print(refused)
"""
SMALL_EAR = Wav2Vec2Config(channels=32, layers=2, layer=1, width=32, heads=2, ffn=64, kernel=5)
STAGES = {
    "vae": VAEStage(model=vae.TINY),
    "vae, stereo": VAEStage(model=replace(vae.TINY, codec=replace(vae.TINY.codec, channels=2))),
    "vae, paper's kind": VAEStage(model=vae.PAPER),
    "mulan": MuLanStage(model=mulan.TINY),
    "mulan, paper's kind": MuLanStage(model=replace(mulan.TINY, music=ast.TINY)),
    "mulan, CLAP's kind": MuLanStage(
        model=replace(mulan.TINY, music=htsat.HTSATConfig(), projection_hidden=8)
    ),
    "tokenizer": TokenizerStage(model=tokenizer.TINY),
    "tokenizer, paper's kind": TokenizerStage(model=replace(tokenizer.TINY, encoder=SMALL_EAR)),
    "lm": LMStage(model=lm_config.TINY),
    "dpd": DPDStage(model=dpd.TINY),
    "dpd with controls": DPDStage(model=replace(dpd.TINY, controls=VOCABULARY)),
    "lm with a melody": LMStage(model=replace(lm_config.TINY, melody_span=1)),
    "coarse": load_config("coarse_tiny").stage,
    "dpd_distilled": ConsistencyStage(model=replace(dpd.TINY, guidance_range=(1.0, 4.0))),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", STAGES)
def test_example_batches_fit_every_stage(name: str, dtype: str) -> None:
    """The shapes that are compiled are those that training sees: gradients can be traced on them."""
    stage = STAGES[name]
    stage = replace(stage, model=with_fields(stage.model, dtype=dtype))
    window = stage.model.condition.length if name == "coarse" else 80
    data = DataConfig(batch_size=4, crop_samples=9600, window_tokens=window, text_length=12)
    batch = programs.example(TrainConfig(stage=stage, data=data, init_from="mini"))
    key = jax.random.key(0)
    result, _ = jax.eval_shape(stage.gradients, jax.eval_shape(stage.init, key), batch, key, jnp.int32(0))
    assert functional.count(result) > 0
    if batch.keys() >= {"prefix_tokens"}:
        controls = getattr(stage.model, "controls", None)
        assert batch["prefix_tokens"].shape[1] == 12 + (len(controls.sizes) if controls else 0)


TINY_SAMPLER = SamplerConfig(lm=lm_config.TINY, dpd=dpd.TINY, lm_guided=True)


@pytest.mark.parametrize("system", system_programs.PAPER)
def test_samplers_of_other_systems_are_traced(system: str) -> None:
    """From word pieces to one window of sound, each device with its own items."""
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    traced = system_programs.trace_system(system, tiny_configs(system), 2, mesh)
    assert traced.out_info.shape == (2, 15_360)
    assert matmul_cost(traced.jaxpr)[0] > 0


def test_every_system_has_a_paper_s_size() -> None:
    assert {"melody", *system_programs.PAPER} == set(SYSTEMS)
    for system in system_programs.PAPER:
        assert system_programs.paper_configs(system).keys() == system_programs.PAPER[system].keys()


def test_sampler_is_one_program_a_chip_without_collectives() -> None:
    """Twice the clips on one device are twice the FLOPs and bytes of activations, and only the weights are shared."""
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    one, two = (programs.trace_sampler(TINY_SAMPLER, mulan.TINY, vae.TINY, size, mesh) for size in (1, 2))
    assert one.out_info.shape[0] == 1
    assert two.out_info.shape == (2, *one.out_info.shape[1:])
    assert matmul_cost(two.jaxpr)[0] == pytest.approx(2 * matmul_cost(one.jaxpr)[0], rel=1e-6)
    assert read_collectives(one.lower().compile().as_text()) == []


def test_batches_that_do_not_divide_are_refused() -> None:
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    with pytest.raises(UserError, match="batch size 0 does not divide over mesh"):
        programs.trace_sampler(TINY_SAMPLER, mulan.TINY, vae.TINY, 0, mesh)


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu, the extra tpu (213 MB)")
def test_compiled_for_chips_that_are_not_here(tmp_path: Path) -> None:
    """A tiny stage on two slices and what is too large for a chip; libtpu wants a process of its own."""
    (tmp_path / "large.py").write_text(LARGE)
    script = SCRIPT.format(config=str(ROOT / "configs" / "lm_tiny.py"), large=str(tmp_path / "large.py"))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kinds, refusal = done.stdout.splitlines()[-2:]
    assert "recv" in kinds
    assert "all-to-all" not in kinds
    assert "memory" in refusal


def test_bad_arguments_are_one_line() -> None:
    with pytest.raises(UserError, match="--config is missing"):
        compile_tpu.compile_tpu(compile_tpu.CompileConfig())
    with pytest.raises(UserError, match="the chip must be one of v5e, v5p, v6e"):
        compile_tpu.compile_tpu(compile_tpu.CompileConfig(config="configs/lm_tiny.py", topology="v9:4x4"))
