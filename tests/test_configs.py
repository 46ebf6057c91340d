"""Every file in configs/ is a run: it loads, its network survives JSON, its size is right."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers.docs import ROOT

from melody_jax.config import load_config
from melody_jax.config_json import difference, from_dict, to_dict
from melody_jax.flops import matmul_cost
from melody_jax.models.functional import count
from melody_jax.scale.programs import example

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
SIZES = {
    "mulan_paper": 195_273_984,
    "tokenizer_paper": 195_929_344,
    "lm_paper": 417_395_712,
    "dpd_paper": 295_626_000,
    "dpd_paper_aligned": 295_626_000,
    "vae_paper": 66_637_665,
    "vae_modern": 60_466_948,
    "codec_paper": 58_153_665,
    "coarse_paper": 424_735_744,
    "fine_paper": 423_674_880,
    "lm_audiolm_paper": 203_450_368,
    "coarse_audiolm_paper": 210_789_376,
    "fine_audiolm_paper": 222_323_712,
    "vocoder_paper": 25_112_482,
    "generator_paper": 716_057_936,
    "upsampler_paper": 494_413_776,
    "dmae_paper": 149_085_252,
    "latent_generator_paper": 689_556_544,
    "lm_modern": 424_736_768,
    "dpd_modern": 298_842_432,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config(path: Path) -> None:
    config = load_config(path)
    assert config.workdir == f"runs/{path.stem}"
    model = config.stage.model
    assert from_dict(type(model), to_dict(model)) == model
    size = count(jax.eval_shape(config.stage.init, jax.random.key(0))["model"])
    if path.stem in SIZES:
        assert size == SIZES[path.stem]
    else:
        assert size < {"small": 40e6, "modern_distilled": 299e6}.get(path.stem.split("_", 1)[1], 20e6)


SYSTEMS = {
    "melody": ("lm_ablation", "dpd_systems"),
    "musiclm": ("lm_ablation", "coarse_ablation", "fine_ablation"),
    "audiolm": ("lm_audiolm_ablation", "coarse_audiolm_ablation", "fine_ablation"),
    "noise2music": ("generator_ablation", "upsampler_ablation"),
    "mousai": ("latent_generator_ablation",),
}
"""The generating networks of each system that the comparison of systems trains."""


def test_compared_systems_are_equally_large() -> None:
    def size(name: str) -> int:
        stage = load_config(ROOT / "configs" / f"{name}.py").stage
        return count(jax.eval_shape(stage.init, jax.random.key(0))["model"])

    sizes = {system: sum(map(size, names)) for system, names in SYSTEMS.items()}
    assert sizes == pytest.approx(dict.fromkeys(SYSTEMS, 4.35e6), rel=0.02)


def test_compared_systems_train_with_equally_many_flops() -> None:
    def flops(name: str) -> float:
        config = load_config(ROOT / "configs" / f"{name}.py")
        shapes = jax.eval_shape(config.stage.init, jax.random.key(0))
        key, step = jax.random.key(0), jnp.int32(0)
        gradients = jax.make_jaxpr(lambda params, batch: config.stage.gradients(params, batch, key, step))
        return config.steps * matmul_cost(gradients(shapes, example(config)))[0]

    trained = {name: flops(name) for name in {name for names in SYSTEMS.values() for name in names}}
    totals = {system: sum(trained[name] for name in names) for system, names in SYSTEMS.items()}
    assert totals == pytest.approx(dict.fromkeys(SYSTEMS, 171e12), rel=0.01)


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem.endswith(("_small", "_paper", "_modern"))]
)
def test_large_configs_compute_as_the_tables_assume(path: Path) -> None:
    """docs/evaluation/tpu.md: bfloat16, DPD with recomputed blocks, the LM with recomputed elementwise work."""
    model = load_config(path).stage.model
    settings = difference({}, model)
    dtypes = {value for name, (_, value) in settings.items() if name.rpartition(".")[2] == "dtype"}
    assert dtypes == {"bfloat16"} or path.stem == "tokenizer_small"  # its encoder is float32 only
    if path.stem.startswith("dpd"):
        assert model.remat == "blocks"
    if path.stem in ("lm_paper", "lm_modern"):
        assert model.remat == "dots"
