"""Every file in configs/ is a run: it loads, its network survives JSON, its size is right."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from helpers.docs import ROOT, blocks

from melody_jax.config import load_config
from melody_jax.config_json import difference, from_dict, to_dict
from melody_jax.models.functional import count
from melody_jax.sharding import check_batch

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


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem.endswith(("_small", "_paper", "_modern"))]
)
def test_large_configs_compute_as_the_tables_assume(path: Path) -> None:
    """docs/evaluation/tpu.md: bfloat16, and DPD with recomputed blocks."""
    model = load_config(path).stage.model
    settings = difference({}, model)
    dtypes = {value for name, (_, value) in settings.items() if name.rpartition(".")[2] == "dtype"}
    assert dtypes == {"bfloat16"} or path.stem == "tokenizer_small"  # its encoder is float32 only
    if path.stem.startswith("dpd"):
        assert model.remat == "blocks"


DEVICES = {
    "srun": lambda text: (
        int(re.findall(r"--nodes (\d+)", text)[0]) * int(re.findall(r"gpus-per-node (\d+)", text)[0])
    ),
    "gcloud": lambda text: int(re.findall(r"v5litepod-(\d+)", text)[0]),
    "xpk": lambda text: (
        int(re.findall(r"v5litepod-(\d+)", text)[0]) * int(re.findall(r"slices (\d+)", text)[0])
    ),
}
"""First word of a recipe in docs/scale.md -> its number of devices."""


def test_recipes_for_pods_fit_their_devices() -> None:
    """Each recipe as written: its options are valid, and its devices divide its batch."""
    recipes = next(text for text in blocks(ROOT / "docs" / "scale.md", "text") if "srun" in text)
    parts = [part for part in recipes.split("\n\n") if "melody train" in part]
    assert len(parts) == len(DEVICES)
    for part in parts:
        launcher = next(name for name in DEVICES if re.search(rf"^{name} ", part, re.M))
        devices = DEVICES[launcher](part)
        words = re.findall(r'melody train ([^\n"]*)', part.replace("\\\n", ""))[0].split()
        config = load_config(words[0], [word for word in words[1:] if word != "..."])
        given = math.prod(size for size in config.mesh if size != -1)
        assert devices % given == 0
        sizes = [devices // given if size == -1 else size for size in config.mesh]
        mesh: Any = SimpleNamespace(shape=dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
        check_batch(config.data.batch_size, mesh, config.accumulate)
        assert config.hosts.join
