"""Programs lower for CUDA without float64 or kernels of the CPU; a callback to the host would not lower at all. No GPU
is needed: XLA's passes do not run."""

import re
from dataclasses import replace
from typing import Any

import jax
import pytest
from helpers.systems import tiny_configs

from melody_jax.config import load_config, with_fields
from melody_jax.models import dpd, lm_config, mulan, vae
from melody_jax.sampling.windows import SamplerConfig
from melody_jax.scale import programs, system_programs
from melody_jax.sharding import make_mesh

FLOAT32_ONLY = ("tokenizer",)
"""Stages whose encoder computes in float32."""


def lower_for_gpus(traced: Any) -> str:
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "f64" not in text
    assert not re.findall(r"custom_call @(?!Sharding|SPMD|xla\.sdy)\S+", text)
    return text


def test_float64_is_noticed() -> None:
    with jax.enable_x64(True):
        traced = jax.jit(lambda x: x.astype("float64") + 1).trace(jax.ShapeDtypeStruct((2,), "float32"))
    with pytest.raises(AssertionError, match="f64"):
        lower_for_gpus(traced)


@pytest.mark.parametrize("name", ["lm", "dpd", "vae", "mulan", "tokenizer", "coarse", "generator", "dmae"])
def test_training_steps(name: str) -> None:
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    config = load_config(f"{name}_tiny")
    model = with_fields(config.stage.model, dtype="bfloat16")
    text = lower_for_gpus(
        programs.trace_step(replace(config, stage=replace(config.stage, model=model)), mesh)
    )
    assert name in FLOAT32_ONLY or re.search("dot_general.*bf16", text)


@pytest.mark.parametrize("system", ["melody", "audiolm", "noise2music", "mousai"])
def test_samplers(system: str) -> None:
    """MusicLM's is AudioLM's with a prefix, and takes long to trace."""
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    if system == "melody":
        sampler = SamplerConfig(lm=lm_config.TINY, dpd=dpd.TINY, lm_guided=True)
        lower_for_gpus(programs.trace_sampler(sampler, mulan.TINY, vae.TINY, 2, mesh))
    else:
        lower_for_gpus(system_programs.trace_system(system, tiny_configs(system), 2, mesh))
