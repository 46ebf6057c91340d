"""Every file in configs/ is a run: it loads, its network survives JSON, its size is right."""

from pathlib import Path

import jax
import pytest

from melody_jax.config import load_config
from melody_jax.config_json import from_dict, to_dict
from melody_jax.models.functional import count

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
SIZES = {
    "mulan_paper": 195_273_984,
    "tokenizer_paper": 195_929_344,
    "lm_paper": 417_395_712,
    "dpd_paper": 295_626_000,
    "dpd_paper_aligned": 295_626_000,
    "vae_paper": 66_637_665,
    "lm_modern": 424_736_768,
    "dpd_modern": 297_717_312,
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
        assert size < {"small": 40e6, "modern": 60e6, "modern_distilled": 298e6}.get(
            path.stem.split("_", 1)[1], 20e6
        )
